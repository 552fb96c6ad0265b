"""Which round is the best on the validation scans, from their learning curves."""

from stipple_monai.files import read_csv, write_csv
from stipple_monai.self_training.comparison import RoundComparison


def curves(out, *rounds):
    for number, scores in enumerate(rounds):
        rows = [[epoch, "0.5", "0.5", score] for epoch, score in enumerate(scores, 1)]
        header = ["epoch", "loss", "train_dice", "validation_dice"]
        (out / f"round_{number}" / "models").mkdir(parents=True)
        write_csv(out / f"round_{number}" / "models" / "curve.csv", header, rows)


def test_the_best_epoch_of_each_round_is_compared(tmp_path):
    curves(tmp_path, ["0.3", "0.5", "0.4"], ["", "0.6", "0.6"], ["0.55"])
    found = RoundComparison.read(tmp_path, 2)
    assert found.rounds == {0: (2, 0.5), 1: (2, 0.6), 2: (1, 0.55)}
    assert found.best() == 1
    lines = found.lines()
    assert lines[0] == "round 0: Dice 0.500 on the validation scans (epoch 2)"
    assert lines[1].endswith("(epoch 2), 0.100 more than round 0: this round helps")
    assert lines[2].endswith("(epoch 1), 0.050 less than round 1: this round does not help")
    assert lines[3:] == ["best: round 1, use round_1/models"]
    found.write(tmp_path / "comparison.csv")
    rows = [list(row.values()) for row in read_csv(tmp_path / "comparison.csv")]
    expected = [["0", "2", "0.50000", "no"], ["1", "2", "0.60000", "yes"]]
    assert rows == [*expected, ["2", "1", "0.55000", "no"]]


def test_a_later_round_is_measured_by_the_best_before_it(tmp_path):
    curves(tmp_path, ["0.6"], ["0.5"], ["0.55"])
    found = RoundComparison.read(tmp_path, 2)
    assert [line.endswith("does not help") for line in found.lines()] == [False, True, True, False]
    assert "0.050 less than round 0" in found.lines()[2]
    assert found.best() == 0
    assert RoundComparison.read(tmp_path, 1).rounds == {0: (1, 0.6), 1: (1, 0.5)}


def test_of_equal_rounds_the_first_is_the_best(tmp_path):
    curves(tmp_path, ["0.6"], ["0.6"])
    found = RoundComparison.read(tmp_path, 1)
    assert found.best() == 0
    assert found.lines()[1].endswith("(epoch 1), as round 0: this round does not help")


def test_without_validation_nothing_is_compared(tmp_path):
    curves(tmp_path, ["", ""], ["", ""])
    assert RoundComparison.read(tmp_path, 1).rounds == {}
