"""Export a checkpoint, ours or a published one: ONNX, torch.export, safetensors, the published layouts.

python src/export.py checkpoint=outputs/SWEEP/RUN format=onnx
python src/export.py checkpoint=convmixer_768_32 format=safetensors
python src/export.py --help
"""

from collections.abc import Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from config.commands import Export, register_commands
from config.errors import report_errors


@hydra.main(version_base="1.3", config_path="../conf", config_name="export")
def main(composed: DictConfig) -> None:
    with report_errors():
        run(composed, HydraConfig.get().overrides.task)


def run(composed: DictConfig, overrides: Sequence[str]) -> None:
    # torch takes seconds to import: not for --help or a misspelt key
    from inference.checkpoint import load_checkpoint
    from inference.export import export

    settings, checkpoint = load_checkpoint(composed, overrides, Export)
    export(checkpoint, settings)


if __name__ == "__main__":
    register_commands()
    with report_errors():
        main()
