import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from llamagen_jax.errors import InputError
from llamagen_jax.sharding import abstract_init, make_mesh, sharded_init, tree_shardings

RULES = ((r"kernel$", ("fsdp", "tensor")), (r"bias$", ("tensor",)), (r"bias$", (None,)))


def test_mesh_fills_the_data_axis():
    assert dict(make_mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("shape", [(3, 1, 1), (-1, 3, 1), (8, 2, 1), (0, 1, 8)])
def test_mesh_that_does_not_fit_is_refused(shape):
    with pytest.raises(InputError, match="does not use the 8 devices"):
        make_mesh(*shape)


def test_first_matching_rule_places_parameters_and_moments_alike():
    tree = {
        "params": {"a": {"kernel": jnp.zeros((4, 6)), "bias": jnp.zeros(6)}},
        "mu": {"a": {"kernel": jnp.zeros((4, 6)), "scale": jnp.zeros(5)}},
        "count": jnp.zeros(()),
    }
    shardings = tree_shardings(tree, RULES, make_mesh(2, 2, 2))
    assert shardings["params"]["a"]["kernel"].spec == P("fsdp", "tensor")
    assert shardings["mu"]["a"]["kernel"].spec == P("fsdp", "tensor")
    assert shardings["params"]["a"]["bias"].spec == P("tensor")
    assert shardings["mu"]["a"]["scale"].spec == P()
    assert shardings["count"].spec == P()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((4, 5), r"kernel \(4, 5\): 5 is not divisible .*tensor.* = 2"), ((4,), "does not fit")],
)
def test_rule_that_does_not_fit_names_the_parameter(shape, message):
    with pytest.raises(InputError, match=message):
        tree_shardings({"kernel": jnp.zeros(shape)}, RULES, make_mesh(2, 2, 2))


def test_state_is_born_in_its_place():
    def init():
        return {"kernel": jax.random.normal(jax.random.key(0), (4, 6))}

    mesh = make_mesh(2, 2, 2)
    state, abstract = sharded_init(init, RULES, mesh), abstract_init(init, RULES, mesh)
    assert state["kernel"].sharding == abstract["kernel"].sharding
    assert state["kernel"].addressable_shards[0].data.shape == (2, 3)
    assert jnp.array_equal(state["kernel"], init()["kernel"])
