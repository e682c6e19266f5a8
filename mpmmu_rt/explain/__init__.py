"""What a deployed model looks at: occlusion, attention, and what each modality and learner says.

occlusion  how the probability changes when a part of an image is covered: asked of the target itself
shapley    what each part adds to it, on average over the orders of uncovering them: asked of the target itself
attention  the gates of the attention pool on the target's own feature maps
blocks     the gates of the blocks before it, as the deployed graphs compute them
study      all of it for one case: `explain`
overlays   maps drawn over the images, in their own aspect ratio
block_parts  what the page shows of `blocks`
page       the document of many cases
"""

from .shapley import Sampling as Sampling
from .study import Explanation as Explanation
from .study import explain as explain
