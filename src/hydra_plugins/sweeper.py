"""The sweeper of all sweeps: grids, searches and races (conf/hydra/sweeper).

Hydra only searches the package hydra_plugins for it.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import env_override
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from config.command_line import override
from config.parse import check_constraints
from config.sweepers import Grid, Race, Search
from runtime.files import naming_full_disk
from sweeps.launch import conclude, is_named, is_named_by_time, name_by_time
from sweeps.plan import check_one_folder, parse_overrides
from sweeps.preview import planned_overrides, preview

ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=Grid)  # in place of Hydra's
for name, options in (("optuna", Search), ("race", Race)):
    ConfigStore.instance().store(group="hydra/sweeper/schema", name=name, node=options)


class Sweeps(Sweeper):
    """A sweeper that calls the grid, search or race of sweeps/.

    Args:
        method: The path of the function, e.g. sweeps.grid.grid.
        options: The sweeper's other keys, which setup() reads from the config.
    """

    def __init__(self, method: str, **options: Any) -> None:
        self.method = method

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config: DictConfig = config
        self.options: Any = OmegaConf.to_object(config.hydra.sweeper)
        check_constraints(self.options, "hydra.sweeper.")
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep of the command line's overrides, or print its plan."""
        check_one_folder(parse_overrides(arguments, self.options.params))
        is_by_time, has_name = is_named_by_time(self.config), is_named(arguments)
        outputs = Path(self.config.output_dir)
        is_new = not outputs.exists()
        if is_by_time and not self.config.plan:
            name_by_time(self.config)
        if is_by_time or not has_name:  # Each run would otherwise get a sweep named by its own time of day.
            arguments = [*arguments, override("sweep", self.config.sweep)]
        if self.config.plan:
            folder = Path(self.config.output_dir, self.config.sweep)
            runs, note = planned_overrides(self.config, arguments, self.options)
            preview(self.config.hydra.job.config_name, folder, runs, note, as_json=self.config.plan == "json")
            return
        sweep = get_method(self.method)  # Hydra imports this module at every start, and Optuna's import takes long.
        with env_override(self.config.hydra.job.env_set):
            try:
                with naming_full_disk(outputs / self.config.sweep / "search.db"):
                    run_ids = sweep(self.config, self.launcher, arguments, self.options)
            except Exception:
                with suppress(OSError):  # The folders are empty if no run was started.
                    (outputs / self.config.sweep).rmdir()
                    if is_new:
                        outputs.rmdir()
                raise
        conclude(self.config, run_ids or ())
