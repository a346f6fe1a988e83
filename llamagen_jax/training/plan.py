"""What a run does otherwise when it goes on with another configuration.

Plans are what config.json of a work folder holds: the configuration, nested, beside "class_names",
"credit" and "records" of the training data.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from llamagen_jax.training.optimizer import OptimizerConfig, learning_rate

# Results depend on none of these.
_FREE = (
    "sample.",
    "mesh.",
    "sharding_rules",
    "data.eval",
    "record_offset",
    "credit",
    "expected_loss",
    "evaluate.",
)
_SCHEDULE = (
    "steps",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_steps",
)
# Without the one or with it, the state holds other arrays.
_SWITCHES = (
    "optimizer.ema_decay",
    "loss.perceptual_weight",
    "loss.adversarial_weight",
    "model.code_dropout",
)


class Change(NamedTuple):
    """One thing that is otherwise from here on.

    Attributes:
      text: tells it.
      jumps: whether results are others because of it, rounding apart.
    """

    text: str
    jumps: bool


class _Effect(NamedTuple):
    text: str
    jumps: bool = True


_DROPOUT, _LOSS = _Effect("changes dropout"), _Effect("changes the loss")
_EXAMPLES, _DATA = _Effect("changes what is made of records"), _Effect("changes the data")
_NOTHING = _Effect("changes nothing, for those weights are in the checkpoint", jumps=False)
_ROUNDING = _Effect("changes speed and rounding alone", jumps=False)
# By key, or by its beginning where that ends in a dot; what is not here makes it another run.
_EFFECTS = {
    "seed": _Effect("draws another order of the data, other crops and other dropout"),
    "accumulation_steps": _Effect("changes the draws of dropout and rounding alone", jumps=False),
    "attention": _ROUNDING,
    "remat": _ROUNDING,
    "init_from": _NOTHING,
    "restart_codes": _Effect("changes what becomes of unused codes"),
    "optimizer.": _Effect("changes the optimizer's updates"),
    "loss.vgg16": _NOTHING,
    "loss.lpips_heads": _NOTHING,
    "loss.": _LOSS,
    "model.dtype": _Effect("changes the precision of the model's products"),
    "model.commitment_weight": _LOSS,
    "model.entropy_weight": _LOSS,
    "model.condition_dropout": _DROPOUT,
    "model.token_dropout": _DROPOUT,
    "model.code_dropout": _DROPOUT,
    "model.residual_dropout": _DROPOUT,
    "model.ffn_dropout": _DROPOUT,
    "model.drop_path": _DROPOUT,
    "model.control_dropout": _DROPOUT,
    "data.source": _DATA,
    "data.train": _DATA,
    "data.random_crop": _EXAMPLES,
    "data.random_flip": _EXAMPLES,
    "data.fast_decode": _EXAMPLES,
    "data.skip_small": _EXAMPLES,
    "data.background": _EXAMPLES,
    "data.exif_orientation": _EXAMPLES,
    "data.control": _EXAMPLES,
    "data.caption_weights": _Effect("changes how captions are drawn"),
    "data.workers": _Effect("changes speed alone", jumps=False),
    "records": _Effect("changes the data and draws another order of it"),
}


def other_run(
    before: Mapping[str, Any], after: Mapping[str, Any], may_change: tuple[str, ...]
) -> tuple[str, Any, Any] | None:
    """A key, with both its values, that makes `after` the plan of another run; None without one.

    Args:
      before, after: plans.
      may_change: of `OpenTask`.
    """
    for key, old, new in _differences(before, after):
        switched = key in _SWITCHES and bool(old) != bool(new)
        known = key in (*_SCHEDULE, "batch_size", *may_change) or _effect(key)
        if switched or not known:
            return key, old, new
    return None


def changes(before: Mapping[str, Any], after: Mapping[str, Any], step: int) -> list[Change]:
    """What a run at `step` does otherwise with the plan `after`, which is of the same run."""
    found, schedule = [], []
    for key, old, new in _differences(before, after):
        text = f"{'' if key == 'records' else 'config.'}{key} {old!r} -> {new!r}"
        if key in _SCHEDULE:
            schedule.append(text)
        elif key == "batch_size":
            found.append(Change(f"{text} {_batches(before, after)}", True))
        elif effect := _effect(key):
            found.append(Change(f"{text} {effect.text}", effect.jumps))
    if schedule:
        text, jumps = _rates(before, after, step)
        found.append(Change(f"{', '.join(schedule)} {text}", jumps))
    return found


def _differences(before: Mapping, after: Mapping) -> list[tuple[str, Any, Any]]:
    """Keys whose values differ and are not free, with both values."""
    before, after = _flatten(before), _flatten(after)
    return [
        (key, before.get(key), after.get(key))
        for key in before | after
        if before.get(key) != after.get(key)
        # Not known yet when the folder was begun, and not in use now.
        and (key in before or after[key])
        and not (key.startswith(_FREE) or key.endswith("_every"))
    ]


def _effect(key: str) -> _Effect | None:
    return _EFFECTS.get(key) or _EFFECTS.get(key.partition(".")[0] + ".")


def _batches(before: Mapping, after: Mapping) -> str:
    epoch = after["records"] / after["batch_size"], before["records"] / before["batch_size"]
    return (
        "changes the batches: the records go on where they are, none left out or seen twice, and "
        f"an epoch takes {epoch[0]:.4g} steps instead of {epoch[1]:.4g}"
    )


def _rates(before: Mapping, after: Mapping, step: int) -> tuple[str, bool]:
    """What becomes of the learning rate after `step`."""
    rest = np.arange(step, max(step + 1, min(before["steps"], after["steps"])))
    old, new = (
        np.asarray(learning_rate(OptimizerConfig(**plan["optimizer"]), plan["steps"])(rest))
        for plan in (before, after)
    )
    if np.array_equal(old, new):
        return "leaves the learning rate as it is", False
    first = int(np.argmax(old != new))
    rates = f"at step {step + first} {{}} from {old[first]:.3g} to {new[first]:.3g}"
    if before["optimizer"]["schedule"] == after["optimizer"]["schedule"] == "cosine":
        return f"bends the cosine schedule: the learning rate {rates.format('goes')}", True
    return f"changes the learning rate: {rates.format('it goes')}", True


def _flatten(values: Mapping, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
