"""What a model is trained for: to segment the tumour, or to say whether a slice shows one.

The training loop, the folds and the recording are the same for every task; a `Task` is what differs.
"""

from bench.training.tasks.presence import Presence
from bench.training.tasks.segmentation import Segmentation

Task = Segmentation | Presence  # with the same properties and methods, described in `Segmentation`
