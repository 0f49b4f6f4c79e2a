"""The options of launchers as flags."""

import pytest

from domainbed.cli.common import Parser
from domainbed.cli.launching import add_launcher_flags, launcher_flags
from domainbed.config.run_fields import RunOptions
from domainbed.core.flags import add_flags
from domainbed.launchers import WITH_FLAGS, create_launcher


@pytest.fixture
def flags():
    """What flags give, where those of a run are declared, too."""
    parser = Parser()
    add_flags(parser, RunOptions)
    add_launcher_flags(parser)
    return lambda *words: launcher_flags(parser.parse_args(words))


def test_flags_give_options_and_resources_but_not_the_device_of_a_run(flags):
    given = flags("--workers", "2", "--minutes", "1.5", "--device", "cpu", "--runs_per_gpu", "3")
    assert given == {"workers": 2, "minutes": 1.5, "runs_per_gpu": 3}
    launcher, resources = create_launcher("local", given)
    assert (launcher.workers, launcher.runs_per_gpu) == (2, 3)
    assert (resources.minutes, resources.device) == (1.5, None)


@pytest.mark.parametrize(
    ("words", "expected"), [(["0", "2"], (0, 2)), (["1"], (1,)), (["[1, 3]"], (1, 3))]
)
def test_gpus_are_chosen_by_one_or_several_words(flags, words, expected):
    launcher, _ = create_launcher("local", flags("--gpu_ids", *words))
    assert launcher.gpu_ids == expected


def test_every_option_of_the_built_in_launchers_is_a_flag(flags):
    for kind in WITH_FLAGS:
        for name in (*kind.model_fields, *kind.resource_options):
            value = {"sbatch": ["{}"], "init": ["{}"], "requeue": []}.get(name, ["1"])
            given = flags(f"--{name}", *value)
            assert list(given) == [name]
