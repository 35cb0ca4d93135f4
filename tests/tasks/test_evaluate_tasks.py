"""Tasks of a folder asked of a tiny model: scores against their definition, identity by content, bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from tasks.artifacts import ModelRef, Runtime, TaskScoresRef
from tasks.download import download
from tasks.evaluate_tasks import evaluate_tasks
from tasks.evaluation.benchmarks import LocalTask, NamedTask, Suite, expand_suites, pin_task
from tasks.evaluation.task_folder import read_task_folder
from tasks.evaluation.task_scores import TaskScore, TaskScores, read_scores_file
from tasks.models.folders import LocalModel, load_model, load_tokenizer
from tasks.storage.store import open_store

pytestmark = pytest.mark.slow

CHOICES = [
    {"question": "The quick brown fox jumps over the", "options": [" lazy dog", " 漢字", " ()"], "answer": 0},
    {"question": "def add(left, right):", "options": ["\n    return left", " mind at all"], "answer": 0},
    {"question": "Numbers: 1, 22,", "options": [" 333", " fox", " naive"], "answer": 0},
    {"question": "brackets () []", "options": [" dog", " {}"], "answer": 1},
    {"question": "operators == != <=", "options": [" smile", " >="], "answer": 1},
]
CHOICE_TASK = """
task: pick
dataset_path: json
dataset_kwargs: {data_files: {test: data/pick.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{options}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
WRITE_TASK = """
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: data/pick.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{options[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
GROUP = """
group: both
task: [pick, write]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""


def write_tasks(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "data/pick.jsonl").write_text("".join(json.dumps(q) + "\n" for q in CHOICES))
    for name, text in {"pick": CHOICE_TASK, "write": WRITE_TASK, "both": GROUP}.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "own")


@pytest.fixture(scope="module")
def asked(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Callable[..., Path]
) -> tuple[Runtime, ModelRef, Path, TaskScoresRef]:
    """A model in a store, a folder of tasks, and what the model earned on the group of all of them."""
    place = tmp_path_factory.mktemp("tasks")
    runtime = Runtime(root=str(place / "store"), device="cpu")
    model = download.fn(LocalModel(path=str(tiny_llama())), runtime=runtime)
    folder = write_tasks(place / "own")
    return runtime, model, folder, evaluate_tasks.fn(model, LocalTask(name="both", folder=str(folder)), runtime=runtime)


def test_choices_are_scored_by_their_definition(asked: Any) -> None:
    import torch

    runtime, model, _, ref = asked
    store = open_store(runtime)
    network, tokenizer = load_model(store.fetch(model), "float32"), load_tokenizer(store.fetch(model))
    picked, picked_by_length = [], []
    for entry in CHOICES:
        sums = []
        for option in entry["options"]:
            context = tokenizer(entry["question"])["input_ids"]
            whole = tokenizer(entry["question"] + option)["input_ids"]
            logprobs = network(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            total = 0.0
            for position in range(len(context), len(whole)):
                total += logprobs[position - 1, whole[position]].item()
            sums.append(total)
        lengths = [len(option) for option in entry["options"]]
        picked.append(sums.index(max(sums)) == entry["answer"])
        ratios = [s / n for s, n in zip(sums, lengths, strict=True)]
        picked_by_length.append(ratios.index(max(ratios)) == entry["answer"])
    scores = {(s.task, s.metric): s for s in read_scores_file(store.fetch(ref)).scores}
    count = len(CHOICES)
    for metric, right in (("acc", picked), ("acc_norm", picked_by_length)):
        share = sum(right) / count
        assert scores["pick", metric].value == pytest.approx(share)
        assert scores["pick", metric].stderr == pytest.approx((share * (1 - share) / (count - 1)) ** 0.5)
        questions = json.loads((store.fetch(ref) / "questions.json").read_text())["pick"]
        assert questions[metric] == [float(r) for r in right]


def test_a_group_is_told_with_its_members(asked: Any) -> None:
    runtime, _, _, ref = asked
    store = open_store(runtime)
    found = read_scores_file(store.fetch(ref))
    assert {s.task for s in found.scores} == {"both", "pick", "write"}
    assert found.headline.task == "both"
    assert found.scores[0].task == "both"
    manifest = store.manifest(ref)
    assert manifest is not None
    assert manifest.facts["questions"] == 2 * len(CHOICES)
    assert {s.questions for s in found.scores if s.task == "pick"} == {len(CHOICES)}


def test_an_entry_is_asked_once_wherever_its_folder_lies(asked: Any, tmp_path: Path) -> None:
    runtime, model, folder, ref = asked
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    again = LocalTask(name="both", folder=str(elsewhere))
    assert evaluate_tasks.fn(model, again, runtime=runtime) == ref
    (elsewhere / "data/pick.jsonl").write_text(json.dumps(CHOICES[0]) + "\n")
    assert evaluate_tasks.fingerprint(model, again, runtime=runtime) != ref.fingerprint


def test_what_can_be_asked_is_known_before_anything_runs(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"task 'pik': expected .* found none of that name; nearest: pick"):
        pin_task(LocalTask(name="pik", folder=str(folder)))
    with pytest.raises(ValueError, match=r"nearest: .*arc_easy"):
        pin_task(NamedTask(name="arc_eazy"))
    with pytest.raises(ValueError, match="expected a folder, found nothing there"):
        pin_task(LocalTask(name="pick", folder=str(folder / "none")))
    (folder / "data/pick.jsonl").unlink()
    with pytest.raises(ValueError, match=r"pick.yaml names the file 'data/pick.jsonl', found none"):
        pin_task(LocalTask(name="pick", folder=str(folder)))


def test_code_beside_a_task_needs_trust(folder: Path) -> None:
    (folder / "judge.py").write_text("raise SystemExit")
    (folder / "pick.yaml").write_text(f"%TAG !e! !func\n---\n{CHOICE_TASK}\nprocess_results: !e!tion judge.judge\n")
    with pytest.raises(ValueError, match="set trust_code: true"):
        pin_task(LocalTask(name="pick", folder=str(folder)))
    pin_task(LocalTask(name="pick", folder=str(folder), trust_code=True))


def test_a_template_cannot_reach_python(asked: Any, folder: Path, tmp_path: Path) -> None:
    runtime, model, _, _ = asked
    trace = tmp_path / "trace"
    reach = f"{{{{ cycler.__init__.__globals__.os.system('touch {trace}') }}}}"
    (folder / "pick.yaml").write_text(CHOICE_TASK.replace('"{{question}}"', json.dumps(reach)))
    with pytest.raises(ValueError, match="found one that reaches for Python"):
        evaluate_tasks.fn(model, LocalTask(name="pick", folder=str(folder), limit=1), runtime=runtime)
    assert not trace.exists()


def test_data_outside_the_folder_belong_to_its_digest(folder: Path, tmp_path: Path) -> None:
    data = shutil.move(folder / "data/pick.jsonl", tmp_path / "pick.jsonl")
    for sheet in ("pick", "write"):
        text = (folder / f"{sheet}.yaml").read_text()
        (folder / f"{sheet}.yaml").write_text(text.replace("data/pick.jsonl", str(data)))
    before = read_task_folder(str(folder)).digest
    Path(data).write_text(json.dumps(CHOICES[0]) + "\n")
    assert read_task_folder(str(folder)).digest != before


def test_a_folder_tells_whether_it_needs_the_hub(folder: Path) -> None:
    assert not read_task_folder(str(folder)).needs_hub
    (folder / "far.yaml").write_text("task: far\ndataset_path: openai/gsm8k\n")
    assert read_task_folder(str(folder)).needs_hub


def test_a_folder_behind_a_url_is_read_alike(folder: Path) -> None:
    assert read_task_folder(f"file://{folder}") == read_task_folder(str(folder))


def test_suites_name_tasks_that_the_harness_has() -> None:
    entries = expand_suites([Suite(name="fusellm"), Suite(name="common_sense"), NamedTask(name="boolq")])
    assert [entry.name for entry in entries] == [
        *["bbh", "arc_easy", "arc_challenge", "boolq", "hellaswag", "openbookqa", "triviaqa", "drop", "lambada_openai"]
    ]
    for entry in entries:
        assert "harness" in pin_task(entry)
    with pytest.raises(ValueError, match="expected each name once, found boolq"):
        expand_suites([NamedTask(name="boolq"), NamedTask(name="boolq", limit=3)])


def test_the_headline_is_the_metric_that_papers_report() -> None:
    def score(metric: str, task: str = "t") -> TaskScore:
        return TaskScore(task=task, metric=metric, value=0.5, stderr=0.1, questions=9)

    found = TaskScores(name="t", scores=(score("acc"), score("acc_norm"), score("exact_match", "part")))
    assert found.headline.metric == "acc_norm"


def test_intervals_of_shares_hold_more_than_what_was_seen() -> None:
    def score(value: float, stderr: float | None, questions: int) -> TaskScore:
        return TaskScore(task="t", metric="m", value=value, stderr=stderr, questions=questions)

    none_right = score(0.0, 0.0, 40).interval
    assert (none_right.low, none_right.high) == (0, pytest.approx(0.0876, abs=1e-4))
    normal = score(0.5, 0.1, 9).interval  # partial credit: not the error of a share
    assert (normal.low, normal.high) == (pytest.approx(0.304, abs=1e-3), pytest.approx(0.696, abs=1e-3))
    alone = score(3.0, None, 9).interval
    assert (alone.low, alone.high) == (3, 3)
