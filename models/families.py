"""The objectives that configurations and snapshots may name."""

from models.rdm.config import EdmConfig, RelayConfig
from models.wavediff.config import WaveDiffConfig

AnyObjective = EdmConfig | RelayConfig | WaveDiffConfig
