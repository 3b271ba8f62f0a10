"""The objectives that configurations and snapshots may name."""

from models.rdm.objective import EdmConfig, RelayConfig
from models.wavediff.objective import WaveDiffConfig

AnyObjective = EdmConfig | RelayConfig | WaveDiffConfig
