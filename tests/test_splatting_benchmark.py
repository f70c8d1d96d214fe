"""The splatting benchmark's variants and tables; and one tiny world through it."""

import json
from pathlib import Path

import pytest

from benchmarks.splatting_tables import read_lines, tables
from benchmarks.splatting_variants import INGREDIENTS, VARIANTS, ablation
from configs.stage3_gs import GSConfig


def line(seed: int, variant: str, psnr: float, count: float = 1.0) -> dict:
    world = {"layout": "room", "seed": seed, "severity": "medium", "frames": 8, "size": [48, 80]}
    budget = {"count": count, "renderer": "3dgs", "iterations": 5, "wanted": 100}
    return {"world": world, "budget": budget, "variant": variant, "psnr": psnr, "heldout": psnr + 5, "splats": 90, "seconds": 1.0}


def test_tables_show_medians_and_gains_within_a_world(tmp_path: Path) -> None:
    lines = [line(0, "naive", 10.0), line(0, "ours", 99.0), line(0, "ours", 14.0), line(1, "naive", 20.0), line(1, "ours", 21.0)]
    lines += [line(0, "ours", 16.0, count=3.0)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(entry) for entry in lines[:3]))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(entry) for entry in lines[3:]) + "\n\n")
    read = read_lines([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert len(read) == 5  # the later of two lines of one run counts
    text = tables(read)
    assert "| ours | 2 | 17.50 | 22.50 | 90 | 1 |" in text
    assert "ours: novel PSNR dB +2.50 (+1.00), held-out frame PSNR dB +2.50 (+1.00)" in text
    assert "ours, 3 x splats: novel PSNR dB +6.00" in text


def test_every_variant_is_a_valid_setting_and_the_ablation_differs_from_the_defaults() -> None:
    defaults = GSConfig()
    for variant in VARIANTS.values():
        GSConfig(**variant.changes)
    names = ablation()
    assert names[0] == "ours"
    assert len(names) == 1 + len(INGREDIENTS)
    for name in names[1:]:
        assert GSConfig(**VARIANTS[name].changes) != defaults or VARIANTS[name].inverse != "fixed_point"


def test_one_tiny_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import splatting

    out = tmp_path / "lines.jsonl"
    flags = "--layouts room --seeds 0 --frames 4 --size 64x48 --iterations 3 --splats 300 --counts 0.5 --variants naive without_appearance"
    monkeypatch.setattr("sys.argv", ["splatting", *flags.split(), "--json", str(out)])
    splatting.main()
    read = read_lines([out])
    assert [entry["variant"] for entry in read] == ["naive", "without_appearance"]
    assert all(entry["splats"] <= 150 and entry["psnr"] > 3 for entry in read)
    assert "without_appearance" in tables(read)
