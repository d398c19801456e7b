"""W&B's own switches: the defaults of `wandb.mode` and `wandb.tags`."""

import configparser
import os
from pathlib import Path

ALIASES = {"dryrun": "offline", "run": "online"}  # W&B's older words


def default_mode() -> str:
    """Return the mode set by WANDB_MODE, else WANDB_DISABLED, else `wandb disabled` and its like, else offline."""
    disabled = os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on")
    mode = os.environ.get("WANDB_MODE") or ("disabled" if disabled else mode_of_settings()) or "offline"
    return ALIASES.get(mode, mode)


def mode_of_settings() -> str | None:
    """Read the mode from W&B's settings files: this folder's, else the user's."""
    user = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read([user / "settings", Path("wandb/settings"), Path(".wandb/settings")], encoding="utf-8")
    except configparser.Error:
        return None  # W&B's client reports what is wrong with the file.
    return settings.get("default", "mode", fallback=None)


def default_tags() -> list[str]:
    """Return the tags of WANDB_TAGS, which W&B's client ignores when it is passed tags."""
    return [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
