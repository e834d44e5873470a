"""How others would judge the same formulas on the same paths: for comparison with ``cse_jax.screening.verification``.

Each peer gets formulas and gives verdicts with the sign flip allowed, in float64 and with the gate's thresholds.

Verdicts differ from the gate's where an infinite gradient meets a zero, as in ``sqrt(u - u)``: NaN for the peers, 0 for
the gate.  The gradient of ``abs`` at 0 is 0 in PyTorch and 1 in JAX.

A formula is handed over in the peer's own form (a DEAP tree, an array of opcodes); making that form is not timed.  The
packages are optional: ``pip install deap torch kozax==0.1.5``.
"""
