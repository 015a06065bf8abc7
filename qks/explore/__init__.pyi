from .explorer import (
    Explorer as Explorer,
    plot_image_tags as plot_image_tags,
    plot_token_blocks as plot_token_blocks,
)
from .plots import (
    plot_history as plot_history,
    plot_label_ap as plot_label_ap,
    plot_tags as plot_tags,
    plot_token_use as plot_token_use,
    token_attention as token_attention,
    token_use as token_use,
)
