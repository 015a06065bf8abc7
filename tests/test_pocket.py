"""Pocket-WIDE: same seed, same bytes; unseen stays unseen; test designs stay in the test."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from qks.core import QKSError
from qks.data.check import missing_images
from qks.data.drawings import (
    DRAWINGS_FOLDER,
    SHEET_CELL,
    SHEET_COLUMNS,
    VENDORS,
    Drawings,
    background,
    choose_vendor,
    compose_scene,
    held_out_vendor,
    label_vocabulary,
    largest_overlap,
    place_object,
    read_concepts,
)
from qks.data.files import read_table
from qks.data.nuswide import read_nuswide
from qks.data.pocket import PocketConfig, draw_scene, first_foreign, observed_tags, write_pocket
from qks.evaluate.protocols import find_twins

SMALL = PocketConfig(n_train=40, n_test=20)


@pytest.fixture(scope="module")
def concepts():
    return read_concepts()


@pytest.fixture(scope="module")
def drawings():
    return Drawings()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_pocket(tmp_path_factory.mktemp("data") / "pocket", SMALL)


def digest(root):
    "One hash of all names and bytes below a folder."
    value = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        value.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return value.hexdigest()


def boxes_of(root, side):
    return [json.loads(line) for line in (root / f"Boxes/{side}_boxes.jsonl").read_text().splitlines()]


def test_concepts(concepts):
    seen, unseen = label_vocabulary(concepts)
    assert (len(concepts), len(seen), len(unseen)) == (310, 276, 50)
    assert len(set(seen + unseen)) == 326 and len({c.label for c in concepts}) == 310
    assert {"animal", "food"} <= set(seen) and {"bird", "flower", "plant", "car", "boat", "building"} <= set(unseen)
    assert all(c.split in ("seen", "unseen") and c.label not in c.broader for c in concepts)


def test_no_lexical_leakage(concepts):
    assert find_twins(*label_vocabulary(concepts)) == {}


def test_every_drawing_is_there(concepts, drawings):
    rows = -(-len(concepts) // SHEET_COLUMNS)
    assert all(sheet.size == (SHEET_CELL * SHEET_COLUMNS, SHEET_CELL * rows) for sheet in drawings.sheets)
    for vendor in range(3):
        for concept in range(len(concepts)):
            assert drawings.get(concept, vendor, 28)[..., 3].mean() > 10, (concepts[concept], vendor)
    drawing = drawings.get(0, 0, 30)
    assert drawing.shape == (30, 30, 4) and drawing.dtype == np.float32 and (drawing[..., :3] <= drawing[..., 3:]).all()
    drawing[:] = 0
    assert drawings.get(0, 0, 30).any()  # writing to a drawing leaves the cached one as it is


def test_licences_are_beside_the_drawings():
    text = (DRAWINGS_FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    for word in ("Google", "Twitter", "Microsoft", "Unicode", "Miles Johnson", "CC-BY-4.0", "MIT License", "cropped"):
        assert word in text
    assert "Apache License" in (DRAWINGS_FOLDER / "LICENSE-APACHE-2.0.txt").read_text()


def test_overlap():
    square = (0, 0, 10, 10)
    assert largest_overlap(square, []) == 0
    assert largest_overlap(square, [(10, 0, 20, 10)]) == 0  # touching is not overlapping
    assert largest_overlap(square, [(5, 0, 15, 10)]) == 0.5
    assert largest_overlap(square, np.array([(8, 8, 28, 28), (2, 2, 6, 6)])) == 1  # the worst of all counts


def test_place_takes_the_least_overlap_where_there_is_no_room():
    rng = np.random.default_rng(0)
    full = [(0, 0, 60, 96), (60, 0, 96, 96)]
    x0, y0, x1, y1 = place_object(rng, full, 96, (28, 52))
    assert 0 <= x0 < x1 <= 96 and 0 <= y0 < y1 <= 96
    assert all(
        largest_overlap(place_object(rng, [(0, 0, 40, 40)], 96, (28, 52)), [(0, 0, 40, 40)]) <= 0.25 for _ in range(200)
    )


def test_compose_scene(drawings):
    for n in range(1, 8):
        rng = np.random.default_rng(n)
        image, boxes = compose_scene(drawings, rng, rng.choice(310, n, replace=False), rng.integers(0, 3, n))
        edges = boxes[:, 2:] - boxes[:, :2]
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8 and boxes.shape == (n, 4)
        assert (edges[:, 0] == edges[:, 1]).all() and edges.min() >= 28 and edges.max() <= 52 - 3 * max(0, n - 3)
    assert compose_scene(drawings, np.random.default_rng(0), [], [])[1].shape == (0, 4)


def test_pasting_follows_opacity(drawings):
    canvas = np.full((96, 96, 3), 100, np.float32)
    image, boxes = compose_scene(drawings, np.random.default_rng(0), [25], [0], canvas=canvas)
    x0, y0, x1, y1 = boxes[0]
    drawing = drawings.get(25, 0, int(x1 - x0))
    expected = np.array([100 * (1 - d[..., 3:] / 255) + d[..., :3] for d in (drawing, drawing[:, ::-1])])
    difference = np.abs(expected - image[y0:y1, x0:x1]).max(axis=(1, 2, 3))
    assert difference.min() <= 1  # as drawn or mirrored, up to rounding down
    outside = np.ones((96, 96), bool)
    outside[y0:y1, x0:x1] = False
    assert (image[outside] == 100).all()


def test_background_is_float32_and_moderate():
    values = np.stack([background(np.random.default_rng(seed), 48) for seed in range(50)])
    assert values.shape == (50, 48, 48, 3) and values.dtype == np.float32 and 120 < values.mean() < 175


def test_designs():
    rng = np.random.default_rng(0)
    for concept in range(6):
        held = held_out_vendor(concept)
        assert {choose_vendor(rng, concept, "test") for _ in range(20)} == {held}
        assert {choose_vendor(rng, concept, "train") for _ in range(40)} == {0, 1, 2} - {held}


def test_the_scenes_of_a_seed_stay_as_they_are(drawings):
    "What NumPy draws is the same to the bit; the pixels may differ by a rounding of another Pillow."
    drawn = []
    means = []
    for split in ("train", "test"):
        for index in range(8):
            scene = draw_scene(drawings, PocketConfig(), split, index, 310)
            drawn.append([scene.concepts, scene.vendors, scene.boxes.tolist(), scene.rng.random()])
            means.append(scene.image.mean())
    digest = hashlib.sha256(json.dumps(drawn).encode()).hexdigest()
    assert digest == "5240d82a86b5dd4f38ca15ab4009e767c7f44677b21ddf23a7c4c707e31f13a4"
    assert np.mean(means) == pytest.approx(147.48, abs=0.05)


def test_the_settings_load_without_torch():
    script = "import sys; from qks.data.pocket import PocketConfig; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_same_seed_same_bytes(root, tmp_path):
    assert digest(write_pocket(tmp_path / "again", SMALL)) == digest(root)
    other = write_pocket(tmp_path / "other", PocketConfig(n_train=40, n_test=20, seed=1))
    assert digest(other / "Flickr") != digest(root / "Flickr") and digest(other / "Boxes") != digest(root / "Boxes")


def test_a_scene_does_not_depend_on_how_many_there_are(root, tmp_path):
    few = write_pocket(tmp_path / "few", PocketConfig(n_train=3, n_test=2))
    for path in (few / "Flickr").rglob("*.jpg"):
        assert path.read_bytes() == (root / path.relative_to(few)).read_bytes()
    assert boxes_of(few, "Train") == boxes_of(root, "Train")[:3]


def test_files_agree_with_the_boxes(root, concepts):
    seen, unseen = label_vocabulary(concepts)
    index = {c.label: i for i, c in enumerate(concepts)}
    tags = {side: read_table(root / f"NUS_WID_Tags/{side}_Tags1k.dat", len(seen)) for side in ("Train", "Test")}
    for side in ("Train", "Test"):
        records = boxes_of(root, side)
        truth = np.stack(
            [read_table(root / f"Groundtruth/TrainTestLabels/Labels_{u}_{side}.txt", 1)[:, 0] for u in unseen], axis=1
        )
        for i, record in enumerate(records):
            chosen = [index[o["label"]] for o in record["objects"]]
            labels = {label for c in chosen for label in concepts[c].labels}
            held = [VENDORS[held_out_vendor(c)] == o["vendor"] for c, o in zip(chosen, record["objects"])]
            assert all(held) if side == "Test" else not any(held)
            assert 2 <= len(chosen) <= 6 and len(set(chosen)) == len(chosen)
            assert {u for u, there in zip(unseen, truth[i]) if there} == labels & set(unseen)
            if side == "Test":
                assert {s for s, there in zip(seen, tags[side][i]) if there} == labels & set(seen)
            with Image.open(root / "Flickr" / record["image"]) as image:
                assert image.size == (96, 96) and image.format == "JPEG"


def test_nuswide_reader_reads_it(root, concepts):
    seen, unseen = label_vocabulary(concepts)
    train = read_nuswide(root, "train")
    test = read_nuswide(root, "test")
    assert train.label_names == tuple(seen) and test.label_names == tuple(seen + unseen) and test.n_seen == 276
    assert 30 < len(train) <= 40 and len(test) == 20
    assert missing_images(train) == missing_images(test) == []


def test_training_files_hold_no_unseen_label(root, concepts):
    unseen = set(label_vocabulary(concepts)[1])
    assert not unseen & set((root / "NUS_WID_Tags/TagList1k.txt").read_text().split())
    objects = {o["label"] for record in boxes_of(root, "Train") for o in record["objects"]}
    assert objects & unseen  # they are in the pictures


def test_the_train_split_reads_without_ground_truth(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(copy / "Groundtruth")
    assert np.array_equal(read_nuswide(copy, "train").labels, read_nuswide(root, "train").labels)


def test_tag_noise():
    true = np.arange(100) < 10
    clean = observed_tags(np.random.default_rng(0), true, 0, 0)
    assert np.array_equal(clean, true)
    assert not observed_tags(np.random.default_rng(0), true, 1, 0).any()
    noisy = np.array([observed_tags(np.random.default_rng(i), true, 0.1, 0.2) for i in range(3000)])
    assert abs(noisy[:, :10].mean() - 0.9) < 0.01 and abs(noisy[:, 10:].sum(axis=1).mean() - 0.2) < 0.03
    assert noisy[:, 10:].sum(axis=1).max() == 1


def test_draw_scene_is_repeatable(drawings):
    first, second = (draw_scene(drawings, SMALL, "train", 7, 310) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and first[1:3] == second[1:3]
    assert not np.array_equal(first[0], draw_scene(drawings, SMALL, "test", 7, 310)[0])


def test_refuses_to_write_over_anything_else(root, tmp_path):
    with pytest.raises(QKSError, match="pass force=True"):
        write_pocket(root, SMALL)
    (tmp_path / "Flickr").mkdir()
    (tmp_path / "Flickr/mine.jpg").write_bytes(b"mine")
    for force in (False, True):
        with pytest.raises(QKSError, match="holds no Pocket-WIDE"):
            write_pocket(tmp_path, SMALL, force=force)
    assert (tmp_path / "Flickr/mine.jpg").read_bytes() == b"mine"
    with pytest.raises(QKSError, match="is a file"):
        write_pocket(tmp_path / "Flickr/mine.jpg", SMALL)


def test_force_replaces_an_earlier_one(tmp_path):
    tiny = PocketConfig(n_train=2, n_test=1)
    write_pocket(tmp_path / "p", PocketConfig(n_train=5, n_test=4, seed=3))
    write_pocket(tmp_path / "p", tiny, force=True)
    assert digest(tmp_path / "p") == digest(write_pocket(tmp_path / "q", tiny))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(n_train=0),
        dict(n_test=0),
        dict(objects=(3, 2)),
        dict(objects=(0, 2)),
        dict(sizes=(28, 120)),
        dict(sizes=(2, 20)),
        dict(max_overlap=2),
        dict(tag_drop=-0.1),
        dict(tag_add=1.5),
        dict(quality=0),
        dict(seed=-1),
        dict(objects=3),
        dict(sizes=(28, 40, 52)),
        dict(image_size="large"),
    ],
)
def test_config_is_checked(wrong):
    with pytest.raises(QKSError, match=f"^{next(iter(wrong))} is .*: give "):
        PocketConfig(**wrong)


def test_config_survives_json(root):
    assert PocketConfig(**json.loads((root / "pocket.json").read_text())) == SMALL


def test_scenes_of_a_derived_configuration_are_drawn_by_other_processes(tmp_path):
    "The command line derives its options from `PocketConfig`, in a module that the other processes may not have."

    class Derived(PocketConfig):
        "A class that cannot be sent to another process."

    write_pocket(tmp_path / "two", Derived(n_train=4, n_test=2), workers=2)
    write_pocket(tmp_path / "none", PocketConfig(n_train=4, n_test=2))
    names = [path.relative_to(tmp_path / "none") for path in (tmp_path / "none").rglob("*.jpg")]
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "none" / name).read_bytes()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_opened_to_see_its_size(tmp_path):
    "Opening one waits until somebody writes into it."
    os.mkfifo(tmp_path / "pipe.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    assert first_foreign([tmp_path / "pipe.jpg"]) is None
    assert first_foreign([tmp_path / "pipe.jpg", tmp_path / "small.png"]) == tmp_path / "small.png"
