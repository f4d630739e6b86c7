#!/usr/bin/env python3
"""Makes the states that went from PyTorch to this library and back (see README.md). Needs torch, safetensors, numpy and cargo.

    python make.py        writes data.safetensors, <case>.torch.safetensors and <case>.ours.safetensors beside this file

Every case is run by PyTorch for 20 updates. Its state after 10 is exported by `examples/torch_state.py`. Then the suite writes what
this library has after 10 updates of its own (`suite/torch_state.rs`), and PyTorch goes on from there. What it comes to must be what
either came to alone, within `BOUND`; and what it comes to from its own export must be that to the bit.
"""
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SCRIPT = ROOT / "crates/optimizers/examples/torch_state.py"
sys.path.insert(0, str(SCRIPT.parent))

from torch_state import RULES, from_file, to_file  # noqa: E402: it is beside the other examples

STEPS, HALF = 20, 10
SEED = 20240607
BOUND = 1e-6  # of the tensor's largest absolute value

SHAPES = {"fc.weight": (4, 6), "conv.weight": (3, 2, 1, 3), "bn.gamma": (7,), "scale": (), "late": (5,)}

ADAM = dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3)

# The class and the options, or those of two groups: `bn.gamma` and `fc.weight`, and the others.
CASES = {
    "adam": ("Adam", {}),
    "adam_amsgrad": ("Adam", dict(ADAM, amsgrad=True, weight_decay=0.1)),
    "adamw": ("AdamW", {}),
    "adamw_amsgrad": ("AdamW", dict(ADAM, amsgrad=True, weight_decay=0.2)),
    "adamw_groups": ("AdamW", [dict(ADAM, weight_decay=0.0), dict(lr=0.01, weight_decay=0.3)]),
    "sgd": ("SGD", dict(lr=0.05, weight_decay=0.1)),
    "sgd_dampening": ("SGD", dict(lr=0.05, momentum=0.9, dampening=0.3)),
    "sgd_nesterov": ("SGD", dict(lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1)),
    "rms_prop": ("RMSprop", {}),
    "rms_prop_centered": ("RMSprop", dict(lr=0.005, alpha=0.9, eps=1e-2, momentum=0.5, centered=True, weight_decay=0.1)),
    "adagrad": ("Adagrad", dict(lr=0.1, lr_decay=0.05, initial_accumulator_value=0.3, weight_decay=0.1)),
    "ada_max": ("Adamax", dict(lr=0.02, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)),
    "nadam": ("NAdam", dict(momentum_decay=0.05)),
    "nadam_decoupled": ("NAdam", dict(ADAM, weight_decay=0.1, decoupled_weight_decay=True)),
    "radam": ("RAdam", {}),
    "radam_decoupled": ("RAdam", dict(ADAM, weight_decay=0.1, decoupled_weight_decay=True)),
    "adadelta": ("Adadelta", dict(lr=0.5, rho=0.8, eps=1e-2, weight_decay=0.1)),
    "rprop": ("Rprop", dict(lr=0.02, etas=(0.4, 1.3), step_sizes=(1e-3, 0.1))),
    "asgd": ("ASGD", dict(lr=0.05, lambd=0.05, alpha=0.6, t0=4.0, weight_decay=0.1)),
}

# Cases in which the parameter `late` has no gradient in the first half.
LATE = {"sgd_dampening", "rprop"}


def inputs():
    random = np.random.RandomState(SEED)
    tensors = {}
    for name, shape in SHAPES.items():
        drift = 0.4 * random.randn(*shape)
        gradients = np.stack([drift + 0.5 * random.randn(*shape) for _ in range(STEPS)])
        tensors[f"p/{name}"] = torch.tensor(random.randn(*shape), dtype=torch.float32)
        tensors[f"g/{name}"] = torch.tensor(gradients, dtype=torch.float32)
    return tensors


class Run:
    """A training by PyTorch."""

    def __init__(self, case, start):
        self.case, (self.rule, options) = case, CASES[case]
        self.params = {name: torch.nn.Parameter(start[name].clone()) for name in SHAPES}
        members, own = [list(SHAPES)], [{}]
        if isinstance(options, list):
            first = ["bn.gamma", "fc.weight"]
            members, own, options = [first, [name for name in SHAPES if name not in first]], options, {}
        groups = [dict(own, params=[(name, self.params[name]) for name in names]) for own, names in zip(own, members)]
        self.names = [name for group in groups for name, _ in group["params"]]
        self.optimizer = getattr(torch.optim, self.rule)(groups, **options)

    def train(self, data, first, last):
        for step in range(first, last):
            for name, parameter in self.params.items():
                waits = name == "late" and self.case in LATE and step < HALF
                parameter.grad = None if waits else data[f"g/{name}"][step].clone()
            self.optimizer.step()
        return {name: parameter.detach().clone() for name, parameter in self.params.items()}

    def export(self, path):
        counted = self.rule != "SGD" and self.case not in LATE
        to_file(path, self.rule, self.optimizer.state_dict(), self.params, None if counted else HALF)


def start(data):
    return {name: data[f"p/{name}"] for name in SHAPES}


def continued(case, data, half, file):
    """A fresh optimizer of PyTorch that goes on from a state file and parameters."""
    run = Run(case, half)
    for group in run.optimizer.param_groups:
        group["lr"] = 123.0  # the file has the rates
    run.optimizer.load_state_dict(from_file(file, run.names))
    return run.train(data, HALF, STEPS)


def worst(a, b):
    """The largest difference, of the tensor's largest absolute value; infinite for what is no number."""
    errors = [((a[name] - b[name]).abs().max() / b[name].abs().max()).item() for name in SHAPES]
    return max(math.inf if math.isnan(error) else error for error in errors)


def check_commands(case, run, export):
    """The script's two commands do what its functions do."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        torch.save({"optimizer": run.optimizer.state_dict(), "model": run.params}, folder / "run.pt")
        command = [sys.executable, SCRIPT]
        subprocess.run([*command, "export", folder / "run.pt", folder / "state", "--rule", run.rule], check=True)
        assert str(from_file(folder / "state")) == str(from_file(export)), case
        (folder / "names").write_text("\n".join(run.names) + "\n")
        subprocess.run([*command, "import", folder / "state", folder / "back.pt", "--names", folder / "names"], check=True)
        back, expected = torch.load(folder / "back.pt")["optimizer"], from_file(export, run.names)
        assert str(back) == str(expected), case


def check_refusals(data):
    """What has no counterpart is refused, with a message that says what."""
    def refuses(expected, call, *arguments):
        try:
            call(*arguments)
        except ValueError as error:
            assert expected in str(error), error
            return
        raise AssertionError(f"accepted: {expected}")

    def trained(case):
        run = Run(case, start(data))
        run.train(data, 0, HALF)
        return run.rule, run.optimizer.state_dict(), run.params

    def described(case, change):
        """A copy of an export whose description is changed."""
        with safe_open(HERE / f"{case}.torch.safetensors", framework="pt") as file:
            metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        described = {key: json.loads(metadata[key]) for key in ("groups", "parameters")}
        change(described)
        save_file(arrays, path, {**metadata, **{key: json.dumps(value) for key, value in described.items()}})
        return path

    def group(**values):
        return lambda described: described["groups"][0].update(values)

    def config(**values):
        return lambda described: described["groups"][0]["config"].update(values)

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "state"
        rule, state, params = trained("adam")
        refuses("no counterpart of Adafactor", to_file, path, "Adafactor", state, params)
        refuses("no parameters are called", to_file, path, rule, state, {})
        halves = {name: parameter.half() for name, parameter in params.items()}
        refuses("only float32 parameters", to_file, path, rule, state, halves)
        state["param_groups"][0]["maximize"] = True
        refuses("no counterpart of maximize", to_file, path, rule, state, params)
        state["param_groups"][0].update(maximize=False, unheard_of=1)
        refuses("no counterpart of ['unheard_of']", to_file, path, rule, state, params)
        del state["param_groups"][0]["unheard_of"], state["state"][1]["exp_avg"]
        refuses("exp_avg of conv.weight is missing", to_file, path, rule, state, params)
        del state["param_groups"][0]["param_names"]
        refuses("the optimizer has 5 parameters", to_file, path, rule, state, {"scale": params["scale"]})
        refuses("no count of updates", to_file, path, *trained("sgd_nesterov"))
        refuses("different numbers of updates", to_file, path, *trained("rprop"))
        for case, option, key in [("nadam", "momentum_decay", "mu_product"), ("asgd", "lr", "eta")]:
            rule, state, params = trained(case)
            state["param_groups"][0][option] *= 2.0
            refuses(f"{key} of fc.weight is", to_file, path, rule, state, params)
        assert not path.exists()

        # A parameter that never had a gradient, of a rule that corrects a bias by the count, and of one that does not count.
        for case, expected in [("adam", {"step": HALF, "exp_avg": 0.0, "exp_avg_sq": 0.0}), ("sgd_nesterov", None)]:
            rule, state, params = trained(case)
            del state["state"][4]
            to_file(path, rule, state, params, HALF)
            late = from_file(path, list(params))["state"].get(4)
            assert (late and {key: value.max().item() for key, value in late.items()}) == expected, late

        names = Run("adamw_groups", start(data)).names
        export = HERE / "adamw_groups.torch.safetensors"
        refuses("the file has the parameters", from_file, export, names[1:])
        refuses("must stand together", from_file, export, [names[-1], *names[:-1]])
        refuses("no state file", from_file, HERE / "data.safetensors")
        refuses("PyTorch has no adam with corrected_eps = False", from_file, described("adam", config(corrected_eps=False)))
        refuses("no counterpart of lion", from_file, described("adam", group(rule="lion")))
        refuses("no counterpart of adam", from_file, described("adam", group(config=None)))
        refuses("is a schedule", from_file, described("adam", group(lr={"kind": "constant", "lr": 0.1}, previous_lr=None)))
        lr = from_file(described("adam", group(lr={"kind": "constant", "lr": 0.1}, previous_lr=0.3)))["param_groups"][0]["lr"]
        assert lr == 0.3, lr
        refuses("only f32 parameters", from_file, described("adam", lambda all: all["parameters"][0].update(dtype="bf16")))
        refuses("state.fc.weight.vhat is missing", from_file, described("adam", config(use_amsgrad=True)))


def check_documentation():
    """The table in the documentation of optim-checkpoint is the script's."""
    lines = (ROOT / "crates/optim-checkpoint/src/lib.rs").read_text().splitlines()
    table = [line.split(" | ") for line in lines if line.startswith("//! | `") and " → " in line]
    documented = {first.split("`")[1]: slots.removesuffix(" |") for _, first, _, slots in table}
    assert documented == {name: ", ".join(f"`{theirs}` → `{ours}`" for ours, theirs, _ in rule.slots) for name, rule in RULES.items()}


def main():
    check_documentation()
    data = inputs()
    expected = {}
    for case in CASES:
        run = Run(case, start(data))
        half = run.train(data, 0, HALF)
        export = HERE / f"{case}.torch.safetensors"
        run.export(export)
        if case == "adamw_groups":
            check_commands(case, run, export)
        expected[case] = run.train(data, HALF, STEPS)
        assert worst(continued(case, data, half, export), expected[case]) == 0.0, case
        data.update({f"{case}/torch/{HALF}/{name}": tensor for name, tensor in half.items()})
        data.update({f"{case}/torch/{STEPS}/{name}": tensor for name, tensor in expected[case].items()})
    save_file(data, HERE / "data.safetensors")
    check_refusals(data)

    with tempfile.TemporaryDirectory() as folder:
        command = ["cargo", "test", "-p", "optim-tests", "--no-default-features", "--features", "optimizers/cpu,optim-tests/cpu",
                   "--test", "suite", "torch_state::writes", "--", "--ignored", "--exact"]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OPTIM_TORCH_STATE_OUT": folder})
        for case in CASES:
            params = load_file(pathlib.Path(folder) / f"{case}.params.safetensors")
            half, alone = ({name: params[f"{step}/{name}"] for name in SHAPES} for step in (HALF, STEPS))
            export = HERE / f"{case}.ours.safetensors"
            export.write_bytes((pathlib.Path(folder) / f"{case}.state.safetensors").read_bytes())
            end = continued(case, data, half, export)
            errors = [worst(end, alone), worst(end, expected[case])]
            print(f"{case:20} PyTorch from ours: {errors[0]:.1e} of ours alone, {errors[1]:.1e} of PyTorch alone")
            assert max(errors) <= BOUND, case
            data.update({f"{case}/ours/{HALF}/{name}": tensor for name, tensor in half.items()})
            data.update({f"{case}/from_ours/{STEPS}/{name}": tensor for name, tensor in end.items()})
    save_file(data, HERE / "data.safetensors")
    print(f"{sum(file.stat().st_size for file in HERE.glob('*.safetensors'))} bytes")


if __name__ == "__main__":
    main()
