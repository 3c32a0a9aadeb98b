import json

from silo.display import make_display
from silo.training import Progress

PROGRESS = Progress(
    round_number=2, step=1, num_steps=4, loss=0.5, images_per_second=100.0
)


def test_lines_are_json_and_can_be_read_back(capsys):
    with make_display("silo-1", 3, lines=True) as display:
        display.training(PROGRESS)
        display.say("connected")
    first, second = capsys.readouterr().out.splitlines()
    assert Progress(**json.loads(first)["training"]) == PROGRESS
    assert json.loads(second) == {"event": "connected"}


def test_bar_is_for_people_and_leaves_standard_output_alone(capsys):
    with make_display("silo-1", 3, lines=False) as display:
        display.training(PROGRESS)
        display.say("connected")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "connected" in shown.err
