"""Reads your own data: a folder of images, and one folder of labels per task.

my_data/
  images/NAME.jpg     or .jpeg, .png: 8-bit RGB
  semseg/NAME.png     class IDs 0, 1, ... in the order of `tasks.classes`
  human_parts/        class IDs 0 to 6, in the order of `tasks.table.HUMAN_PART_CLASSES`
  saliency/           1 on salient pixels, 0 elsewhere
  edge/               1 on boundaries, 0 elsewhere
  depth/NAME.npy      metres, floating point [h w]; or NAME.png, 16-bit millimetres
  normals/NAME.png    RGB = (normal + 1) / 2 * 255; x right, y up, z towards the camera
  train.txt, val.txt  names of the images to train on and to score, one per line, without suffix

Unlabelled pixels are 255 in class IDs (also in edge and saliency), 0 in depth, and black or grey in
normals. An image without a file in a task's folder is unlabelled for that task. NAME may contain
subfolders; suffixes may be in capitals. A label has the size of its image. Class IDs may be palette
indices, or the 0 and 1 of a 1-bit PNG.
"""

import collections
import glob
import os
import pathlib
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mtmamba_jax.data_pipelines.batch import Example
from mtmamba_jax.data_pipelines.folder.labels import label_suffixes, read_label
from mtmamba_jax.data_pipelines.read_files import DataError, read_list, read_rgb
from mtmamba_jax.files.paths import walk_files
from mtmamba_jax.messages import check_name, counted, shortened
from mtmamba_jax.tasks.table import CUSTOM, IGNORE, Task

LISTS = {"train": "train on", "val": "score"}
"""The splits, each with a list of names, and what its images are used for."""

_IMAGES = "images"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_LISTED = 20  # names in a message
_SAMPLED = 200  # labels of a task that opening reads, at most


class Folder:
    """A random-access source of the raw examples (see `batch.py`) of a folder as described above.

    Opening checks all file names and reports every mistake at once; it also samples labels, mostly
    one of a task. An example's files are checked when it is read.

    Attributes:
      split: "train" or "val".
      ids: Names in the split's list.
      labelled: Number of labelled images, by task name.

    Raises:
      DataError: If something is missing or wrong; the message names it and the remedy.
    """

    def __init__(self, root: str | os.PathLike | None, split: str, tasks: Sequence[Task]):
        check_name("split", split, LISTS)
        self.root, self.split, self.tasks = find_folder(root), split, tuple(tasks)
        problems: list[str] = []
        images = _scan(self.root, _IMAGES, _IMAGE_SUFFIXES, problems)
        if not images:
            raise DataError(
                f"{self.root / _IMAGES} holds no image, NAME{', '.join(_IMAGE_SUFFIXES)}. "
                "Put the images there."
            )
        # Training ends with an evaluation, so mistakes there are reported before it starts.
        checked = tuple(LISTS) if split == "train" else (split,)
        lists = _read_lists(self.root, images, checked, problems)
        # What follows from unknown names is not reported with them.
        known = [s for s in checked if s in lists and set(lists[s]) <= images.keys()]
        wanted = {name: lists[name] for name in known}
        labels = {t.name: _scan_labels(self.root, t, images, wanted, problems) for t in tasks}
        _raise_all(self.root, problems)
        self.ids = lists[split]
        self._files = [
            {_IMAGES: images[name]}
            | {t: files[name] for t, files in labels.items() if name in files}
            for name in self.ids
        ]
        self.labelled = {task: sum(task in files for files in self._files) for task in labels}
        self._unused = {
            task: [file for name, file in files.items() if name not in images]
            for task, files in labels.items()
        }
        problems, self._warnings = [], []
        for name in checked:
            for task in tasks:
                files = [f for n in lists[name] if (f := labels[task.name].get(n))]
                problems += _check_values(self.root, task, name, files)
                self._warnings += _check_labelled(self.root, task, name, files)
        _raise_all(self.root, problems)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        files = self._files[index]
        image = read_rgb(self.root / files[_IMAGES])
        size = image.shape[:2]
        example = {"image": image, "id": self.ids[index]}
        for task in self.tasks:
            if task.name in files:
                example[task.name] = read_label(task, self.root / files[task.name], size)
            else:
                shape = (*size, task.label_channels)
                example[task.name] = np.full(shape, task.ignore, task.label_dtype)
        return example

    def summary(self) -> str:
        """Returns a line with the numbers of images and labels, and lines about useless labels."""
        counts = collections.defaultdict(list)
        for task, count in self.labelled.items():
            counts[count].append(task)
        labels = ", ".join(
            f"{'all' if count == len(self) else count} with {' '.join(names)}"
            for count, names in sorted(counts.items(), reverse=True)
        )
        text = f"{self.root}: {counted(len(self), 'image')} to {LISTS[self.split]}, {labels}"
        for files in self._unused.values():
            if files:
                text += f"\n  labels without an image: {len(files)}, such as {files[0]}"
        return "\n  warning: ".join([text, *self._warnings])


def find_folder(root: str | os.PathLike | None) -> pathlib.Path:
    """Returns the folder given as `config.data.dir`.

    Raises:
      DataError: If the folder is not set, does not exist, or contains no folder of images.
    """
    if root is None:
        raise DataError(
            "Config key 'data.dir' is not set: which folder holds your data? "
            "--config.data.dir=my_data. data_pipelines/folder/source.py describes its files."
        )
    path = pathlib.Path(root).expanduser()
    if not path.is_dir():
        raise DataError(
            f"{path} is not a folder. Give the folder of your data: --config.data.dir=my_data."
        )
    if not (path / _IMAGES).is_dir():
        raise DataError(
            f"{path} has no folder {_IMAGES}/. {_list_subfolders(path)} Put the images in "
            f"{path / _IMAGES}."
        )
    return path


def task_folders(root: pathlib.Path) -> list[str]:
    """Returns the names of the tasks for which the data has a folder of labels."""
    return [task.name for task in CUSTOM if (root / task.name).is_dir()]


def _list_subfolders(path: pathlib.Path) -> str:
    folders = sorted(f"{p.name}/" for p in path.iterdir() if p.is_dir())
    return f"It holds {shortened(folders, _LISTED)}." if folders else "It holds no folder."


def _raise_all(root: pathlib.Path, problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        raise DataError(f"{len(problems)} things are wrong in {root}:\n" + "\n".join(problems))


def _name(path: pathlib.PurePosixPath) -> str:
    return _composed(str(path).removesuffix(path.suffix))


def _composed(name: str) -> str:
    """Returns a name as an editor writes it; macOS splits accents from letters in file names."""
    return unicodedata.normalize("NFC", name)


def _scan(
    root: pathlib.Path, folder: str, suffixes: Sequence[str], problems: list[str]
) -> dict[str, str]:
    """Returns the files that have one of the suffixes, relative to the root, by NAME."""
    found: dict[str, str] = {}
    duplicates = []
    for path in walk_files(root / folder):
        if path.suffix.lower() in suffixes:
            name, file = _name(path), f"{folder}/{path}"
            if name in found:
                duplicates.append(f"{found[name]} and {file}")
            found[name] = file
    if duplicates:
        problems.append(
            f"{root / folder} has two files of one name: {shortened(duplicates, _LISTED)}. Remove "
            "one of each, or rename it."
        )
    return found


def _read_lists(
    root: pathlib.Path, images: Mapping[str, str], checked: Sequence[str], problems: list[str]
) -> dict[str, tuple[str, ...]]:
    """Returns the names in each split's list, if it has any; the splits `checked` need some."""
    paths = {split: root / f"{split}.txt" for split in LISTS}
    lists = {
        split: tuple(dict.fromkeys(map(_composed, read_list(path, allow_empty=True))))
        for split, path in paths.items()
        if path.exists()
    }
    missing = [split for split in checked if not lists.get(split)]
    if missing:
        problems.append(_how_to_list(root, missing, lists, images))
    for split in checked:
        unknown = [name for name in lists.get(split, ()) if name not in images]
        if unknown:
            problems.append(
                f"{root / split}.txt names images that {_IMAGES}/ lacks ({len(unknown)}): "
                f"{shortened(unknown, _LISTED)}. {_how_to_name(root, unknown[0], images)}"
            )
    shared = sorted(set(lists.get("train", ())) & set(lists.get("val", ())))
    if shared:
        problems.append(
            f"{root}: train.txt and val.txt share images ({len(shared)}): "
            f"{shortened(shared, _LISTED)}. Remove them from one: scores must be on images that "
            "were not trained on."
        )
    return {split: names for split, names in lists.items() if names}


def _check_values(
    root: pathlib.Path, task: Task, split: str, labels: Sequence[str]
) -> Iterable[str]:
    """Yields a problem if a split's labels of a two-class task contain no 1, but 255.

    Drawing programs write such masks as 0 and 255, where 255 would mean unlabelled. A sample
    spread over the list usually shows that the labels are right.
    """
    if task.num_classes != 2:
        return
    ignored = False
    sample = _sample(labels)
    for files in (sample, labels):  # all of them if the sample looks wrong
        for file in files:
            label = read_label(task, root / file, None)
            if (label == 1).any():
                return
            ignored |= bool((label == IGNORE).any())
        if not ignored:
            return
    yield (
        f"{root / task.name} holds no values but 0 and 255 for the images of {split}.txt, and 255 "
        "means not labelled. Write 1 instead of 255, or list an image whose label holds a 1."
    )


def _check_labelled(
    root: pathlib.Path, task: Task, split: str, labels: Sequence[str]
) -> Iterable[str]:
    """Yields a warning if no pixel in a sample of a split's labels is labelled.

    Not for two-class tasks, see `_check_values`. Usually the first label that is read has one.
    """
    sample = _sample(labels)
    if task.num_classes == 2:
        return
    if not any((read_label(task, root / file, None) != task.ignore).any() for file in sample):
        yield (
            f"no pixel of {task.name} is labelled in {len(sample)} of the {len(labels)} labels for "
            f"{split}.txt, such as {sample[0]}, so there is nothing to {LISTS[split]}. Label some, "
            "or leave the task out of --config.tasks.names."
        )


def _sample(labels: Sequence[str]) -> Sequence[str]:
    """Returns at most `_SAMPLED` labels, spread over the list."""
    return labels[:: max(1, -(-len(labels) // _SAMPLED))]


def _how_to_list(
    root: pathlib.Path,
    missing: Sequence[str],
    lists: Mapping[str, Sequence[str]],
    images: Mapping[str, str],
) -> str:
    """Returns a message with a command that writes the missing or empty lists, one or both."""
    names = r"find -L images/ -type f | sed 's|^images/*||; s|\.[^./]*$||'"
    other = next((split for split in LISTS if lists.get(split)), None)
    to_split = len(missing) == 2
    how = f"To make {'them' if to_split else 'it'} from the {len(images)} images there"
    if other and images.keys() <= set(lists[other]):  # which leaves none for the missing list
        names, to_split = f"cat {other}.txt", True
        how = f"{other}.txt names all {len(images)} images. To split it (names.txt keeps them all)"
    if to_split:
        scored = max(1, round(len(images) / 10))
        command = (
            f"{names} | sort -R > names.txt && tail -n +{scored + 1} names.txt > train.txt "
            f"&& head -n {scored} names.txt > val.txt"
        )
    else:
        unused = f" | grep -vxF -f {other}.txt" if other else ""
        command = f"{names}{unused} > {missing[0]}.txt"
    wanted = " and ".join(
        f"{split}.txt (images to {LISTS[split]}{'; it is empty' if split in lists else ''})"
        for split in missing
    )
    return (
        f"{root} lacks {wanted}: names, one per line, without suffix. {how}:"
        f"\n  cd {shlex.quote(str(root))} && {command}"
    )


def _how_to_name(root: pathlib.Path, name: str, images: Mapping[str, str]) -> str:
    """Returns what to do about a name in a list that matches no image."""
    plain = name.removeprefix("./").removeprefix(f"{_IMAGES}/")
    shown = "".join(c if c.isprintable() else " "[: c.isspace()] for c in plain).strip(" ")
    for written in (plain, os.path.splitext(plain)[0], shown, os.path.splitext(shown)[0]):
        if written in images:
            return f"Write {written!r}, not {name!r}."
    spaced = [file for each, file in images.items() if each.strip(" \t") == plain]
    if spaced:
        return f"The name of {spaced[0]!r} begins or ends with a space: rename it without."
    written = str(root / _IMAGES / plain)
    others = [written, *sorted(glob.glob(f"{glob.escape(written)}.*"))]
    others = [each for each in others if os.path.isfile(each)]
    hidden = any(part.startswith(".") for part in pathlib.PurePath(plain).parts)
    if others and hidden:
        return f"{others[0]} is hidden, so it is not read: rename it without the leading dot."
    others = [each for each in others if os.path.splitext(each)[0] == written]
    if others:
        return f"{others[0]} has another suffix: save it as .jpg or .png."
    return "Add the images, or remove the names."


def _scan_labels(
    root: pathlib.Path,
    task: Task,
    images: Mapping[str, str],
    lists: Mapping[str, Sequence[str]],
    problems: list[str],
) -> dict[str, str]:
    """Returns the label files of a task, relative to the root, by NAME."""
    folder, suffixes = root / task.name, label_suffixes(task)
    without = "or leave the task out of --config.tasks.names"
    if not folder.is_dir():
        problems.append(
            f"{root} has no folder {task.name}/ for the labels of task {task.name!r}. "
            f"{_list_subfolders(root)} Add it, {without}."
        )
        return {}
    wrong = [
        f"{task.name}/{path}"
        for path in walk_files(folder)
        if path.suffix.lower() not in suffixes and _name(path) in images
    ]
    if wrong:
        problems.append(
            f"{folder} has labels with another suffix than {' or '.join(suffixes)}: "
            f"{shortened(wrong, _LISTED)}. Save them in that format; JPEG changes the values."
        )
    found = _scan(root, task.name, suffixes, problems)
    if wrong:
        return found
    if not found:
        problems.append(
            f"{folder} holds no label, NAME{' or '.join(suffixes)}. Add some, {without}."
        )
    elif not found.keys() & images.keys():
        name, file = next(iter(images.items()))
        problems.append(
            f"{folder} has {len(found)} files, such as {next(iter(found.values()))}, but none with "
            f"the name of an image: the label of {file} is {task.name}/{name}"
            f"{' or '.join(suffixes)}."
        )
    else:
        problems += [
            f"{folder} has no label for any image of {split}.txt, so there is nothing to "
            f"{LISTS[split]}. Add some, {without}."
            for split, names in lists.items()
            if not found.keys() & set(names)
        ]
    return found
