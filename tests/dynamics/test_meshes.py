"""On several devices: the same numbers, split as the inputs are, by explicit axes and by ``jax.shard_map``."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import mgu_jax as mgu
from mgu_jax import dynamics
from tests import laws

# Each takes params, xs [T, B, D] and h0 [B, H], and returns an array whose first axis is that of the batch.
FUNCTIONS = {
    "jacobian": lambda params, xs, h0: dynamics.jacobian(params, h0, xs[0])[0],
    "jvp": lambda params, xs, h0: dynamics.jvp(params, h0, xs[0], h0),
    "vjp": lambda params, xs, h0: dynamics.vjp(params, h0, xs[0], h0)[1],
    "newton": lambda params, xs, h0: dynamics.newton(params, params.W_h[:, 0], h0)[0],
    "lyapunov": lambda params, xs, h0: dynamics.lyapunov(params, xs, h0, 2),
    "memory": lambda params, xs, h0: dynamics.memory(params, xs, h0).time_constants,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_split_over_two_devices(x64, name):
    params, xs, h0 = laws.cast(laws.case(mgu.MGU, 5, (4,))[:3], "float64")
    function = FUNCTIONS[name]
    wanted = function(params, xs, h0)
    specs, mesh = (P(), P(None, "b"), P("b")), jax.make_mesh((2,), ("b",))
    automatic = jax.make_mesh((2,), ("b",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(function, mesh=automatic, in_specs=specs, out_specs=P("b"))(params, xs, h0)
    np.testing.assert_allclose(mapped, wanted, rtol=1e-10, atol=1e-12)
    with jax.set_mesh(mesh):
        arguments = (params, jax.device_put(xs, specs[1]), jax.device_put(h0, specs[2]))
        for call in (function, jax.jit(function)):
            got = call(*arguments)
            assert jax.typeof(got).sharding.spec[0] == "b"
            np.testing.assert_allclose(np.asarray(got), wanted, rtol=1e-10, atol=1e-12)
