"""Rebuild Pocket-WIDE's sheets of drawings and its table of concepts, byte for byte, from four npm packages.

Get and unpack the packages, each into a folder of its own:

    mkdir packages && cd packages
    for name in emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 \\
        @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0
    do
        file=$(npm pack "$name" | tail -1)
        mkdir "${file%.tgz}" && tar -xzf "$file" -C "${file%.tgz}"
    done

Then, in the repository's root:

    python scripts/build_drawings.py packages qks/assets/pocket_wide

The same pixels come from any Pillow; the same bytes need the same Pillow and libwebp.
Licences: qks/assets/pocket_wide/LICENSES.md.
"""

import argparse
import csv
import json
from pathlib import Path

from PIL import Image

CELL = 64  # as SHEET_CELL of qks.data.drawings: a sheet has cells of 64 x 64 pixels,
COLUMNS = 20  # as SHEET_COLUMNS: 20 in a row
SOURCES = {  # sheet -> folder of its drawings; file names are code points in hex
    "noto": "emoji-datasource-google-16.0.0/package/img/google/64",
    "twemoji": "emoji-datasource-twitter-16.0.0/package/img/twitter/64",
    "fluent": "lobehub-fluent-emoji-3d-1.1.0/package/assets",
}
NAMES = "emojibase-data-17.0.0/package/en/data.json"  # CLDR names and keywords

# The choice of concepts: "label", or "label=CLDR_name" where the label is shorter than the name.
# Near-duplicates (clock faces, zodiac signs, buttons) and lexical twins across the two lists are left out.
SEEN = """
monkey gorilla wolf raccoon lion donkey unicorn deer bison pig ram camel giraffe elephant rhinoceros
hippopotamus mouse rabbit hedgehog bat koala panda sloth kangaroo rooster penguin eagle duck owl flamingo
peacock parrot frog crocodile turtle snake dragon dolphin shark octopus jellyfish crab lobster shrimp snail
butterfly honeybee spider scorpion mosquito rose hibiscus sunflower tulip cactus mushroom lotus teapot
chopsticks spoon sushi grapes watermelon lemon banana pineapple mango apple=red_apple pear cherries strawberry
blueberries kiwi=kiwi_fruit tomato coconut bread croissant pretzel pancakes waffle bacon hamburger pizza
sandwich taco egg popcorn butter fries=french_fries cheese=cheese_wedge doughnut cookie cupcake pie candy
lollipop avocado eggplant potato carrot cucumber broccoli garlic onion peanuts corn=ear_of_corn
pepper=hot_pepper luggage factory hospital brick volcano tent fountain compass ferris=ferris_wheel
barber=barber_pole mosque church thermometer star tornado umbrella snowman comet droplet lightning=high_voltage
watch clock=alarm_clock hourglass=hourglass_done parachute helicopter rocket ufo=flying_saucer bus ambulance
taxi tractor motorcycle bicycle skateboard truck=delivery_truck scooter=motor_scooter
traffic=vertical_traffic_light anchor canoe thread palette=artist_palette trophy pumpkin=jack-o-lantern
fireworks balloon gift=wrapped_gift bullseye yo-yo kite joystick puzzle=puzzle_piece dice=game_die
chess=chess_pawn billiard=pool_8_ball baseball basketball volleyball tennis bowling badminton
boxing=boxing_glove hockey=ice_hockey skis sled newspaper scroll sunglasses goggles necktie t-shirt jeans scarf
gloves coat socks dress kimono bikini purse backpack crown lipstick ring hat=top_hat heel=high-heeled_shoe
boot=hiking_boot printer keyboard door mirror bed chair toilet bathtub razor broom bucket toothbrush
extinguisher=fire_extinguisher cart=shopping_cart television camera candle flashlight bulb=light_bulb
lantern=red_paper_lantern magnifying=magnifying_glass_tilted_left key envelope package syringe pill stethoscope
microphone headphone radio saxophone trumpet accordion guitar violin drum flute maracas briefcase calendar
pushpin paperclip scissors cigarette coffin telephone microscope telescope dna megaphone bell hammer axe dagger
bomb boomerang shield wrench screwdriver gear magnet ladder saw=carpentry_saw bow=bow_and_arrow pencil crayon
pen
""".split()
UNSEEN = """
bear bird boat=sailboat book=open_book bridge=bridge_at_night building=office_building car=automobile castle cat
cityscape cloud computer=laptop coral cow dog fire fish flower=blossom fox horse house leaf=maple_leaf
map=world_map moon=crescent_moon mountain airplane plant=potted_plant police=police_car rainbow road=motorway
rock sign=stop_sign snow=snowflake soccer=soccer_ball statue=Statue_of_Liberty sun sunset surf=water_wave
temple=hindu_temple tiger tower=Tokyo_tower toy=teddy_bear train tree=deciduous_tree wedding whale window zebra
beach=beach_with_umbrella military=military_medal
""".split()

# Keywords that become broader labels. Those of the second line are concepts themselves, and unseen.
BROADER = set(
    """
animal food fruit tool clothing music game weather vehicle sport ball ocean vegetable breakfast instrument dessert
bird flower plant car boat building
""".split()
)
WRONG = {("sunset", "building")}  # keyword in CLDR, but not in the drawing


def read_concepts(packages):
    "Rows of the table: label, CLDR name, code points, split, broader labels."
    entries = {entry["label"].lower(): entry for entry in json.loads((packages / NAMES).read_text(encoding="utf-8"))}
    rows = []
    for split, words in (("seen", SEEN), ("unseen", UNSEEN)):
        for word in words:
            label, _, name = word.partition("=")
            entry = entries[(name or label).replace("_", " ").lower()]
            keywords = [keyword.lower() for keyword in entry["tags"]]
            broader = [k for k in keywords if k in BROADER and k != label and (label, k) not in WRONG]
            codepoints = entry["hexcode"].lower().replace("-fe0f", "")
            rows.append([label, entry["label"], codepoints, split, "|".join(broader)])
    return rows


def draw_sheet(folder, codepoints):
    "One artist's drawings: cropped to what is visible, scaled to a cell's longer side, centred."
    files = {path.stem.lower().replace("-fe0f", ""): path for path in sorted(folder.iterdir())}
    sheet = Image.new("RGBA", (CELL * COLUMNS, CELL * -(-len(codepoints) // COLUMNS)))
    for i, code in enumerate(codepoints):
        drawing = Image.open(files[code]).convert("RGBA")
        visible = drawing.getchannel("A").point(lambda alpha: 255 * (alpha > 8))
        drawing = drawing.crop(visible.getbbox())
        scale = CELL / max(drawing.size)
        drawing = drawing.resize([max(1, round(edge * scale)) for edge in drawing.size], Image.Resampling.LANCZOS)
        row, column = divmod(i, COLUMNS)
        left = CELL * column + (CELL - drawing.width) // 2
        top = CELL * row + (CELL - drawing.height) // 2
        sheet.paste(drawing, (left, top))
    return sheet


def main():
    parser = argparse.ArgumentParser(description="Rebuild Pocket-WIDE's drawings and its table of concepts.")
    parser.add_argument("packages", type=Path, help="folder with the four unpacked npm packages")
    parser.add_argument("out", type=Path, help="folder to write drawings_*.webp and concepts.csv to")
    args = parser.parse_args()
    missing = [place for place in (*SOURCES.values(), NAMES) if not (args.packages / place).exists()]
    if missing:
        parser.error(f"{args.packages / missing[0]} is missing: get the packages as the top of this script says")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = read_concepts(args.packages)
    with open(args.out / "concepts.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "cldr_name", "codepoints", "split", "broader"])
        writer.writerows(rows)
    for vendor, folder in SOURCES.items():
        sheet = draw_sheet(args.packages / folder, [row[2] for row in rows])
        sheet.save(args.out / f"drawings_{vendor}.webp", lossless=True, method=6)
    print(f"{len(rows)} concepts written to {args.out}")


if __name__ == "__main__":
    main()
