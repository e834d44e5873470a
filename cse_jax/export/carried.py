"""Functions that exported files carry with them, by framework."""

# The chain rule of the search, for functions that are applied element by element; see ``language.operators.chain``.
CHAIN_RULE = {
    "jax": '''def chained(function):
    """A function of each element whose derivative and incoming gradient have the product 0 where either is 0."""

    def forward(*operands):
        return function(*operands), operands

    def backward(operands, gradient):
        derivatives = jax.vjp(function, *operands)[1](jnp.ones_like(gradient))
        return tuple(jnp.where((d == 0) | (gradient == 0), 0, d * gradient) for d in derivatives)

    rule = jax.custom_vjp(function)
    rule.defvjp(forward, backward)

    def apply(*operands):
        dtype = jnp.result_type(*operands)
        return rule(*jnp.broadcast_arrays(*(jnp.asarray(a, dtype) for a in operands)))

    return apply''',
    "pytorch": '''def chained(function):
    """A function of each element whose derivative and incoming gradient have the product 0 where either is 0."""

    class Chained(torch.autograd.Function):
        @staticmethod
        def forward(context, *operands):
            context.save_for_backward(*operands)
            return function(*operands)

        @staticmethod
        def backward(context, gradient):
            with torch.enable_grad():
                operands = [a.detach().requires_grad_() for a in context.saved_tensors]
                value = function(*operands)
            derivatives = torch.autograd.grad(value, operands, torch.ones_like(value))
            least = torch.finfo(gradient.dtype).tiny  # what is below it is 0 in the search
            gone = gradient.abs() < least
            return tuple(torch.where(gone | (d.abs() < least), 0, d * gradient) for d in derivatives)

    def apply(*operands):
        like = next(a for a in operands if torch.is_tensor(a))
        tensors = (a if torch.is_tensor(a) else torch.full_like(like, a) for a in operands)
        return Chained.apply(*torch.broadcast_tensors(*tensors))

    return apply''',
}

# Half precision holds neither areas nor 1e-20.
FLOATS = {
    "jax": """def floats(*arrays):
    \"\"\"The inputs in one type, float32 at least.\"\"\"
    return [jnp.asarray(a, jnp.result_type(jnp.float32, *arrays)) for a in arrays]""",
    "numpy": """def floats(*arrays):
    \"\"\"The inputs in one type, float32 at least.\"\"\"
    arrays = [np.asarray(a) for a in arrays]
    return [a.astype(np.result_type(np.float32, *arrays)) for a in arrays]""",
    "pytorch": """def floats(*arrays):
    \"\"\"The inputs in one type, float32 at least.\"\"\"
    dtype = functools.reduce(torch.promote_types, (a.dtype for a in arrays), torch.float32)
    return [a.to(dtype) for a in arrays]""",
}
