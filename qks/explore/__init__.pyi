from .explorer import (
    Explorer as Explorer,
    plot_image_tags as plot_image_tags,
    plot_token_blocks as plot_token_blocks,
)
from .fonts import choose_fonts as choose_fonts, show_any_script as show_any_script
from .overlay import show_maps as show_maps
from .plots import (
    plot_history as plot_history,
    plot_label_ap as plot_label_ap,
    plot_scene_rows as plot_scene_rows,
    plot_tags as plot_tags,
    plot_token_use as plot_token_use,
    token_attention as token_attention,
    token_use as token_use,
)
from .pointing import Pointing as Pointing, pointing_game as pointing_game
from .scenes import Scenes as Scenes, draw_scenes as draw_scenes, plot_recall as plot_recall
