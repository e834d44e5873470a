"""Formulas written by hand for tables of trained losses: good, mediocre and bad ones of each space."""

_P = "sigmoid(x)"
_S = "softmax(x)"
_CE = f"-dot(y, log({_S}))"

MULTI_CLASS = (
    f"-dot(y * (1 - {_S}), log({_S}))",  # focal, gamma 1
    f"-dot(y * (1 - {_S}) * (1 - {_S}), log({_S}))",  # gamma 2
    f"{_CE} + (1 - dot(y, {_S}))",  # PolyLoss-1
    f"1 - dot(y, {_S})",  # mean absolute error
    f"dot({_S} - y, {_S} - y)",  # squared error
    f"1 - sqrt(dot(y, {_S}))",  # generalised cross entropy, q 0.5
    f"{_CE} + dot({_S} - y, {_S} - y)",
    f"{_CE} * ({_CE})",
    f"sqrt({_CE})",
    "dot(y, softplus(-x)) + dot(1 - y, softplus(x))",  # one logistic loss for each class
    f"-dot(y, log({_S})) - dot(1 - y, log(1 - {_S}))",
    f"exp(1 - dot(y, {_S}))",
)
BINARY_CLASS = (
    f"-(y * ((1 - {_P}) * log({_P})) + ny * ({_P} * log(1 - {_P})))",  # focal, gamma 1
    f"-(y * ((1 - {_P}) * ((1 - {_P}) * ((1 - {_P}) * log({_P})))) + ny * ({_P} * ({_P} * ({_P} * log(1 - {_P})))))",
    f"-((q - {_P}) * ((q - {_P}) * (q * log({_P}) + (1 - q) * log(1 - {_P}))))",  # quality focal
    f"-(q * (q * log({_P}) + (1 - q) * log(1 - {_P})) + ny * ({_P} * ({_P} * log(1 - {_P}))))",  # varifocal
    f"y * (1 - {_P} - log({_P})) + ny * ({_P} - log(1 - {_P}))",  # PolyLoss-1
    f"({_P} - y) * ({_P} - y)",
    f"abs({_P} - y)",
    "y * relu(1 - x) + ny * relu(1 + x)",  # hinge
    "3 * y * softplus(-x) + ny * softplus(x)",
    "y * softplus(-x) + 3 * ny * softplus(x)",
    f"y * softplus(-x) + ny * {_P} * {_P}",
    "y * (1 - tanh(x)) + ny * (1 + tanh(x))",
)
BOX = (
    "1 - i / e",
    "-log(i / e)",
    "(1 - i / u) * (1 - i / u)",
    "1 - i / u * (i / u)",
    "sqrt(1 - i / u)",
    "exp(1 - i / u)",
    "1 - i / u + 3 * ((e - u) / e)",
    "(u - i) / (i + 1)",
    "e - i",
    "log(1 + u - i)",
)
