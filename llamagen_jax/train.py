"""Trains a tokenizer or a generator.

  python train.py --config=configs/digits.py:tokenizer --workdir=runs/digits_tokenizer

Start it again with the same command to go on after an interruption. Any value of the configuration
can be changed on the command line: --config.optimizer.learning_rate=3e-4

  python train.py --config=configs/c2i.py:7B-384 --dry-run --devices=8 --config.mesh.fsdp=8

shows what a run would take without starting it.
"""

import os
import sys

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from llamagen_jax.errors import InputError, naming, one_line_errors
from llamagen_jax.files import local_path
from llamagen_jax.training import config_files, dry_run
from llamagen_jax.training.config import from_mapping
from llamagen_jax.training.loop import train
from llamagen_jax.training.tasks import make_mesh, make_task, open_task


class _ConfigParser(flags.ArgumentParser):
    def parse(self, path: str) -> ConfigDict:
        return config_files.load(path)


_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="FILE.py[:VARIANT]: a path, or one of " + ", ".join(config_files.names()),
)
flags.FLAGS["config"].parser = _ConfigParser()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, metrics and sample images; made when missing."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry-run",
    False,
    "Print parameters, shardings, memory per device and FLOPs per step; train nothing.",
)
_DEVICES = flags.DEFINE_integer(
    "devices", None, "With --dry-run: plan for so many devices, faked on the CPU.", lower_bound=1
)
_CHANGE_PLAN = flags.DEFINE_bool(
    "change-plan",
    False,
    "Go on with the run in --workdir though results jump with this configuration.",
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "Join the other processes of this SLURM or MPI job, TPU pod slice, or --coordinator.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where no scheduler tells it."
)
_NUM_PROCESSES = flags.DEFINE_integer("num-processes", None, "How many there are.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process-id", None, "Which one this is.", lower_bound=0)


# What srun, Open MPI, and MPICH and its kin tell of the processes that they start: how many there
# are, and the number of each.
_STARTED_TOGETHER = (
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
)


def run() -> None:
    """Runs the command."""
    # What --help shows is the running script's docstring and flags.
    sys.modules["__main__"].__doc__ = __doc__
    for flag in flags.FLAGS.get_key_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parse_flags)


def main(_):
    logging.set_verbosity(logging.WARNING)
    with one_line_errors():
        config = from_mapping(_CONFIG.value.to_dict())
        if _DRY_RUN.value:
            if _DEVICES.value:
                jax.config.update("jax_platforms", "cpu")
                jax.config.update("jax_num_cpu_devices", _DEVICES.value)
            print(dry_run.report(make_task(config), make_mesh(config)))
            return
        if not _WORKDIR.value:
            raise InputError("--workdir is missing: name the folder to write to")
        if _DISTRIBUTED.value or _COORDINATOR.value:
            _join_processes()
        elif _DISTRIBUTED.value is None:
            check_alone()
        with naming("--workdir"):
            workdir = local_path(_WORKDIR.value)
        task = open_task(config, make_mesh(config))
        train(task, workdir, change_plan=_CHANGE_PLAN.value)


def check_alone() -> None:
    """Refuses a process that was started with others, which would all train the same run."""
    for count, number in _STARTED_TOGETHER:
        # SLURM_NTASKS tells nothing: a batch script has it too, and is one process, number 0.
        if int(os.environ.get(count, 1)) > 1 or int(os.environ.get(number, 0)) > 0:
            raise InputError(
                f"this process is one of several that one launcher started ({number}="
                f"{os.environ.get(number, '')}): give --distributed to train one run together, or "
                "--nodistributed where each trains a run of its own"
            )


def _join_processes():
    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot join the other processes ({error}); outside of SLURM, MPI and TPU pods give "
            "--coordinator, --num-processes and --process-id"
        ) from error


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing, with mistakes in flags and configuration files told in one line."""
    with one_line_errors():
        try:
            return flags.FLAGS(argv)
        # Of ml_collections, for a key that the configuration lacks.
        except (AttributeError, LookupError) as error:
            raise InputError(f"no such configuration key: {config_files.message(error)}") from error
        except (flags.Error, TypeError, ValueError) as error:
            raise InputError(config_files.message(error)) from error


if __name__ == "__main__":
    run()
