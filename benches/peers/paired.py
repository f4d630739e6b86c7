#!/usr/bin/env python3
"""Ours and PyTorch's in turn: a row of `cargo bench -p optim-benches`, the same of `torch_adamw.py`, the first again, …, each in a process
of its own, so that neither the machine's moods nor the luck of pages meet only one of them.

    paired.py [--python PYTHON] [--rounds 5] [--threads 2] [--case resnet50 ...] [--rule adamw ...] [--form fused] [--clip no] [--save FILE]

Prints medians of both in nanoseconds a parameter, their ratios to the limit, and torch/ours: the median of the rounds, and the lowest
and highest. `--save` adds every line of JSON to a file, behind one that names the machine and the date.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def lines(command):
    """The JSON lines that a command prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def ours(case, rule, threads, clip):
    label = f"cpu {case} {rule} {threads} f32 f32-state {'clip' if clip else 'no_clip'}"
    (row,) = lines(["cargo", "bench", "-q", "-p", "optim-benches", "--", "--json", "all", label])
    return row


def theirs(python, case, rule, threads, clip, form):
    options = ["--case", case, "--rule", rule, "--threads", str(threads), "--form", form, "--clip", "yes" if clip else "no"]
    rows = lines([python, str(HERE / "torch_adamw.py"), *options])
    return rows[0] if rows else None


def machine():
    """Processor and cores, how busy it is, and the date."""
    name = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    cores = 0
    if info.exists():
        pairs = [line.split(":", 1) for line in info.read_text().splitlines() if ":" in line]
        names = [value.strip() for key, value in pairs if key.strip() == "model name"]
        name, cores = (names or [name])[0], len(names)
    name += f", {cores} threads" if cores else ""
    load = os.getloadavg()[0]
    name += f", busy with other work (load {load:.0f})" if load > 0.5 else ""
    return {"machine": name, "date": datetime.date.today().isoformat()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="with PyTorch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", nargs="+", default=["flat64M", "gpt2-small", "resnet50", "tiny2000x256", "one100k"])
    parser.add_argument("--rule", nargs="+", default=["adamw"])
    parser.add_argument("--form", nargs="+", default=["fused"])
    parser.add_argument("--clip", nargs="+", choices=["no", "yes"], default=["no"])
    parser.add_argument("--save", type=pathlib.Path)
    args = parser.parse_args()
    head = machine()
    subprocess.run(["cargo", "bench", "-q", "--no-run", "-p", "optim-benches"], check=True, cwd=HERE)
    if args.save:
        args.save.parent.mkdir(parents=True, exist_ok=True)
        if not args.save.exists():
            args.save.write_text(json.dumps(head) + "\n")

    print(f"{'case':<13} {'rule':<16} {'th':>2} {'clip':<4} {'torch':<8} {'ours ns':>9} {'x limit':>8} {'torch ns':>9} {'x limit':>8} torch/ours")
    for case in args.case:
        for rule in args.rule:
            for clip in args.clip:
                for form in args.form:
                    pairs = []
                    for _ in range(args.rounds):
                        pair = (ours(case, rule, args.threads, clip == "yes"), theirs(args.python, case, rule, args.threads, clip == "yes", form))
                        if pair[1] is None:
                            break
                        pairs.append(pair)
                        if args.save:
                            with args.save.open("a") as file:
                                file.writelines(json.dumps(row) + "\n" for row in pair)
                    if not pairs:
                        print(f"{case:<13} {rule:<16} PyTorch has no {form} {rule}")
                        continue

                    def middle(which, key):
                        return statistics.median(pair[which][key] for pair in pairs)

                    ratios = sorted(b["ns_per_param"] / a["ns_per_param"] for a, b in pairs)
                    print(
                        f"{case:<13} {rule:<16} {args.threads:>2} {clip:<4} {form:<8}"
                        f" {middle(0, 'ns_per_param'):>9.4f} {middle(0, 'ratio_to_limit'):>8.2f}"
                        f" {middle(1, 'ns_per_param'):>9.4f} {middle(1, 'ratio_to_limit'):>8.2f}"
                        f" {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
