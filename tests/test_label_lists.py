"""Label files as tools and people write them, lists of labels by name, and scripts that a tokenizer spells out."""

import json
from types import SimpleNamespace

import open_clip
import pytest
import torch
from PIL import Image

from qks import QKS
from qks.commands.main import main
from qks.commands.tag import read_label_arguments
from qks.core import ASSETS, QKSError, check_labels, shorten
from qks.data.label_lines import Line, line_numbers
from qks.data.presets import PRESETS, expand_presets, label_list, preset_labels
from qks.data.table import read_label_file
from qks.model.scripts import describe_scripts, spelled_out
from qks.model.tagger import check_tag_arguments

# --- label files ---


def read(tmp_path, text, name="labels.txt", **options):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_label_file(path, **options)


@pytest.mark.parametrize(
    "text, remark",
    [
        ("0: dog\n1: traffic light\n", "every line begins with a number, which is no part of the label: '0: dog'"),
        ("0:dog\n1:traffic light\n", "begins with a number"),
        ("17\tdog\n3\ttraffic light\n", "begins with a number"),
        ("0,dog\n1,traffic light\n", "begins with a number"),
        ("0;dog\n1;traffic light\n", "begins with a number"),
        ("5=dog\n5=traffic light\n", "begins with a number, .*some of them are the same"),
        ("1. dog\n2. traffic light\n", "begins with a number"),
        ("1) dog\n2) traffic light\n", "begins with a number"),
        ("0 dog\n1 traffic light\n", "begins with a number"),
        ("n02084071\tdog\nn06874185\ttraffic light\n", "begins with an id"),
        ("n02084071 dog\nn06874185 traffic light\n", "begins with an id"),
        ("/m/0bt9lr,dog\n/m/015qff,traffic light\n", "begins with an id"),
        ("dog\t0\ntraffic light\t1\n", "ends with a number"),
        ("dog, 120\ntraffic light, 45\n", "ends with a number"),
        ("dog 0\ntraffic light 1\n", "ends with a number"),
        ("- dog\n- traffic light\n", "every line begins with '-', which is no part of the label"),
        ("* dog\n* traffic light\n", r"every line begins with '\*'"),
        ("# animals\ndog\n#\n\n# things\ntraffic light\n", r"3 lines begin with '#' .* \(lines 1, 3 and 5\)"),
        ("dog  # mine\ntraffic light\n", r"1 line ends in a comment after '#', left out \(line 1\)"),
        ("# ids\n0: dog # mine\n1: traffic light\n", "begins with a number"),
        ("\u201cdog\u201d\n\u00abtraffic light\u00bb\n", r"2 lines are in typographic quotes.*\(lines 1 and 2\)"),
        ('{"0": "dog",\n "1": "traffic light"}\n', "2 labels in the order of their numbers"),
        ('{"1": "traffic light", "0": "dog"}\n', "in the order of their numbers"),
        ("{0: 'dog', 1: 'traffic light'}\n", "in the order of their numbers"),
        ('{"traffic light": 1, "dog": 0}\n', "in the order of their numbers"),
        ('{"0": ["n02084071", "dog"], "1": ["n06874185", "traffic light"]}', "in the order of their numbers"),
        ('{"id2label": {"0": "dog", "1": "traffic light"}}', "in the order of their numbers"),
        ("'dog'\n\"traffic light\"\n", None),
    ],
)
def test_what_is_no_name_is_taken_off_and_said(tmp_path, text, remark):
    labels, remarks = read(tmp_path, text)
    assert labels == ["dog", "traffic light"]
    if remark is None:
        assert not remarks
    else:
        with pytest.raises(QKSError, match=remark):
            raise QKSError(" | ".join(remarks))


@pytest.mark.parametrize(
    "name, text, remark",
    [
        (
            "c.csv",
            "id,name,kind\n0,dog,animal\n1,traffic light,thing\n",
            "column 'name' of a table; not used: 'id', 'kind'",
        ),
        ("c.csv", "LabelName,DisplayName\n/m/0bt9lr,dog\n/m/015qff,traffic light\n", "'DisplayName'.*'LabelName'"),
        ("c.csv", "dog,an animal\ntraffic light,a thing\n", "labels are in column 1 of 2; not used: .*'an animal'"),
        ("c.csv", "0,dog\n1,traffic light\n", "labels are in column 2 of 2"),
        ("c.csv", "label\ndog\ntraffic light\n", "line 1 names the column: 'label'"),
        ("c.tsv", "index\tname\n0\tdog\n1\ttraffic light\n", "column 'name'"),
        ("c.csv", "name;count\ndog;3\ntraffic light;4\n", "column 'name'"),
        ("data.yaml", "nc: 2\nnames:\n  0: dog\n  1: traffic light\n", "in the order of their numbers"),
        ("data.yaml", "path: x\nnames: [dog, traffic light]\n", "in the order of their numbers"),
    ],
)
def test_the_labels_of_a_table_are_one_column(tmp_path, name, text, remark):
    labels, remarks = read(tmp_path, text, name)
    assert labels == ["dog", "traffic light"]
    with pytest.raises(QKSError, match=remark):
        raise QKSError(" | ".join(remarks))


def test_a_quoted_cell_of_a_csv_is_one_label(tmp_path):
    assert read(tmp_path, 'name,n\n"salt, pepper",1\ndog,2\n', "c.csv").labels == ["salt, pepper", "dog"]
    with pytest.raises(QKSError, match=r"c.csv line 3 has no label in column 1"):
        read(tmp_path, "name,n\ndog,1\n,2\n", "c.csv")
    assert read(tmp_path, "dog,cat,bee\n", "c.csv").labels == ["dog", "cat", "bee"]  # one line is a list
    assert read(tmp_path, "dog,an animal\n", "c.csv", separator=",").labels == ["dog", "an animal"]


@pytest.mark.parametrize(
    "text, match",
    [
        ("0: dog\n1: cat\nbee\n", r"2 of 3 lines begin with a number or an id, such as '0: dog' \(lines 1 and 2\)"),
        ("dog\nn02084071 cat\n", r"1 of 2 lines begin with a number or an id.*\(line 2\)"),
        ("dog\ncat\t7\n", r"1 of 2 lines end with a number or an id"),
        ("#dog\n#cat\n", "every line begins with '#', as comments do, such as '#dog'"),
        ("dog\n# comment\ncat\ndog\n", "labels.txt line 4: 'dog' is already in line 1; keep one$"),
        ("dog\ncat\ndog\ncat\n", r"line 3: 'dog' is already in line 1; line 4: 'cat' is already in line 2.*2 labels"),
    ],
)
def test_what_only_some_lines_have_is_asked(tmp_path, text, match):
    with pytest.raises(QKSError, match=match):
        read(tmp_path, text)


@pytest.mark.parametrize("text", ["0: dog\n1: cat\nbee", "#dog\n#cat", "- dog\n- cat", "dog # mine\ncat"])
def test_lines_as_they_are(tmp_path, text):
    assert read(tmp_path, text, separator="none").labels == text.split("\n")


def test_numbers_that_are_part_of_a_name_stay_and_are_reported(tmp_path):
    labels, remarks = read(tmp_path, "dog\n4 leaf clover\n'1: odd'\nBoeing 747\n3 wheeler\n")
    assert labels == ["dog", "4 leaf clover", "1: odd", "Boeing 747", "3 wheeler"]
    assert "2 lines begin with a number, and are taken as they are (lines 2 and 5), such as '4 leaf clover'" in remarks
    assert read(tmp_path, "4 leaf clover\n2 wheeler\n").labels == ["4 leaf clover", "2 wheeler"]
    labels, remarks = read(tmp_path, "dog\n- cat\n")
    assert labels == ["dog", "- cat"] and "begins with a mark and is taken as it is (line 2)" in remarks[0]


def test_a_file_of_two_classes_by_number_loses_none(tmp_path):
    """`{"dog": 0, "cat": 1}` in a cell of a table says that there is a cat; in a label file it numbers two labels."""
    assert read(tmp_path, '{"dog": 0, "cat": 1}').labels == ["dog", "cat"]


def test_line_numbers_in_words():
    lines = [Line(n, "dog") for n in range(1, 31)]
    assert [line_numbers(lines[:n]) for n in (1, 2, 3)] == ["line 1", "lines 1 and 2", "lines 1, 2 and 3"]
    assert line_numbers(lines) == "lines 1, 2, 3, 4, 5, 6, 7, 8 and 22 more"


# --- a file where labels are expected ---


def test_a_file_that_is_given_as_labels_is_asked_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l.txt").write_text("dog\ncat\n")
    (tmp_path / "cat").write_text("a file called as a label")
    Image.new("RGB", (32, 32)).save("a.png")
    assert main(["tag", "a.png", "--labels", "l.txt"]) == 2
    assert "--labels: 'l.txt' is a file: pass --labels-file l.txt" in capsys.readouterr().err
    for text in (str(tmp_path / "l.txt"), "dog,l.txt", "cat"):
        with pytest.raises(QKSError, match="is a file: pass --labels-file"):
            read_label_arguments(text, None)
    assert read_label_arguments("dog,cat", None) == ["dog", "cat"]
    assert read_label_arguments("m.txt,cat", None) == ["m.txt", "cat"]


# --- lists by name ---


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_distinct_labels_and_says_where_it_is_from(name):
    labels = preset_labels(f"@{name}")
    sizes = {"coco80": 80, "nuswide81": 81, "openimages600": 601, "imagenet1k": 998}
    assert len(labels) == sizes.get(name, 1061) and check_labels(labels) == labels
    assert str(len(labels)) in PRESETS[name].replace(",", "")
    assert all(label == label.strip() and label for label in labels)
    if name != "imagenet1k":
        header = (ASSETS / "labels" / f"{name}.txt").read_text(encoding="utf-8").split("\n")[:3]
        assert header[0].startswith(f"# @{name}: ") and "Source: " in header[1] + header[2]
        assert any("icence: " in line for line in header) or name == "everyday"


def test_presets_hold_what_their_sources_do():
    coco = preset_labels("@coco80")
    assert (coco[0], coco[2], coco[-1]) == ("person", "car", "toothbrush")
    nuswide = preset_labels("@nuswide81")
    assert (nuswide[0], nuswide[-1]) == ("airport", "zebra") and nuswide == sorted(nuswide)
    assert {"Tortoise", "Kitchen & dining room table", "Helmet"} <= set(preset_labels("@openimages600"))
    assert preset_labels("@imagenet1k")[:2] == ["tench", "goldfish"]
    everyday = preset_labels("@everyday")
    assert {"person", "dog", "bridge", "rain", "wedding", "violin", "tractor"} <= set(everyday)
    assert not {"man", "woman", "girl", "boy"} & set(everyday)


@pytest.mark.parametrize("text", ["@coco80", "@COCO80", "@coco-80"])
def test_a_preset_by_its_name(text):
    assert label_list(text) == label_list([text]) == preset_labels("@coco80")
    assert read_label_arguments(text, None) == preset_labels("@coco80")


@pytest.mark.parametrize("text, hint", [("@coco", "did you mean @coco80"), ("@mine", "there are @everyday, @coco80")])
def test_an_unknown_preset_names_those_that_exist(text, hint, tmp_path, monkeypatch):
    for use in (label_list, preset_labels, lambda text: read_label_arguments(text, None)):
        with pytest.raises(QKSError, match=f"'{text}' names no list of labels: {hint}.*@imagenet1k"):
            use(text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / text[1:]).write_text("dog\n")
    with pytest.raises(QKSError, match=f"read labels from the file {text[1:]} pass --labels-file {text[1:]}"):
        read_label_arguments(text, None)
    with pytest.raises(QKSError, match="lists by name are for --labels @coco80"):
        read_label_arguments(None, type(tmp_path)("@coco80"))


def test_presets_among_other_labels_count_once(caplog):
    labels = read_label_arguments("castle,Person,@coco80,@nuswide81", None)
    assert labels[:2] == ["castle", "Person"] and len(labels) == len({label.casefold() for label in labels})
    assert "--labels: 10 labels count once, though in more than one of the lists, such as 'person'" in caplog.text
    assert expand_presets(["dog", "dog"]).labels == [
        "dog",
        "dog",
    ]  # that a user repeats one is `check_labels`' business
    assert expand_presets(["@home", "dog"], literal=["@home"]) == (["@home", "dog"], [])


def test_a_preset_in_a_label_file(tmp_path):
    (tmp_path / "l.txt").write_text("castle\n@coco80\n")
    assert read_label_arguments(None, tmp_path / "l.txt") == ["castle", *preset_labels("@coco80")]


@pytest.fixture(scope="module")
def model():
    return QKS.from_pretrained("pocket", device="cpu")


def test_presets_in_python(model):
    picture = Image.new("RGB", (64, 64), "green")
    (tags,) = model.tag(picture, "@coco80", threshold=0)
    assert sorted(tag.label for tag in tags) == sorted(preset_labels("@coco80"))
    assert model.tag(picture, ["@coco80"], top_k=3, threshold=0) == [tags[:3]]
    (own,) = model.tag(picture, threshold=0)
    assert {tag.label for tag in own} == set(model.labels)
    with pytest.raises(QKSError, match="did you mean @coco80"):
        model.tag(picture, "@coc80")
    with pytest.raises(QKSError, match="labels must be a list of strings, not str"):
        model.tag(picture, "coco80")
    assert check_tag_arguments(["@home"], None, None, ["@home"]) == ["@home"]


def test_a_model_without_labels_is_asked_for_everyday_things(model, tmp_path, monkeypatch, capsys):
    asked = []

    def tag_each(images, labels, *arguments, **options):
        asked.extend(labels)
        return iter(())

    stand_in = SimpleNamespace(labels=(), vlp=model.vlp, tag_each=tag_each)
    monkeypatch.setattr("qks.experiment.loading.load_model", lambda *args, **kwargs: stand_in)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert main(["tag", str(tmp_path / "a.png"), "--model", "pocket"]) == 0
    assert asked == preset_labels("@everyday")
    nameless = QKS(model.vlp, model.head, model.pool)
    monkeypatch.setattr("qks.model.tagger.EVERYDAY", "@coco80")
    assert len(nameless.tag(tmp_path / "a.png", threshold=0)[0]) == 80
    said = capsys.readouterr().err
    assert "pocket names no labels that it was trained on: it is asked for the 1,061 common things" in said


# --- long labels ---


def test_long_labels_are_shortened_in_messages(tmp_path):
    label = "a very " * 60 + "long label"
    assert shorten("x" * 60) == "x" * 60 and shorten("x" * 61) == f"{'x' * 60}… (61 characters)"
    for call in (
        lambda: check_labels([label, label]),
        lambda: read(tmp_path, f"{label}\ndog\n{label}\n"),
        lambda: read_label_arguments(f"{label},{label}", None),
    ):
        with pytest.raises(QKSError, match=r"… \(430 characters\)'") as caught:
            call()
        assert len(str(caught.value)) < 300 + len(str(tmp_path))
    remarks = read(tmp_path, f"{label}[\ndog\n").remarks
    assert all(len(remark) < 200 for remark in remarks) and "(431 characters)" in remarks[0]


# --- scripts ---

WORDS = ["собака", "кот", "猫", "日本", "강아지", "σκύλος", "कुत्ता", "كلب", "שלום"]
LATIN = ["dog", "café", "naïve art", "straße", "smörgåsbord", "jalapeño", "ice-cream", "Ärger"]


@pytest.fixture(scope="module")
def bpe():
    return open_clip.get_tokenizer("ViT-B-32")


def test_scripts_that_openais_tokenizer_spells_out(bpe):
    assert spelled_out(bpe, WORDS) == WORDS
    assert spelled_out(bpe, LATIN) == []
    (remark,) = describe_scripts(bpe, [*LATIN, *WORDS])
    assert remark.startswith("9 labels are in a script") and "'собака', 'кот', '猫'" in remark
    assert describe_scripts(bpe, LATIN) == []


def test_a_tokenizer_that_knows_a_script_is_left_alone():
    """One token per Chinese character, one per word elsewhere, as multilingual tokenizers have."""

    def tokenizer(texts):
        ids = torch.zeros(len(texts), 20, dtype=torch.long)
        for row, text in enumerate(texts):
            n = sum(len(word) if "\u4e00" <= word[0] <= "\u9fff" else 1 for word in text.split())
            ids[row, : n + 2] = 7
        return ids

    assert spelled_out(tokenizer, ["猫", "日本", "собака", "dog"]) == []


def test_a_tokenizer_of_letters_shows_nothing():
    def tokenizer(texts):
        ids = torch.zeros(len(texts), 80, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text.encode())] = 7
        return ids

    assert spelled_out(tokenizer, ["café", "собака"]) == []


def test_the_command_says_which_labels_the_vlp_can_hardly_read(tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert (
        main(
            [
                "tag",
                str(tmp_path / "a.png"),
                "--labels",
                "dog,собака",
                "--model",
                "pocket",
                "--threshold",
                "0",
                "--json",
            ]
        )
        == 0
    )
    captured = capsys.readouterr()
    assert "1 label is in a script that the tokenizer of this VLP knows only letter by letter" in captured.err
    (answer,) = json.loads(captured.out)
    assert {tag["label"] for tag in answer["tags"]} == {"dog", "собака"}
