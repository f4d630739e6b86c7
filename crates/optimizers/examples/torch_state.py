#!/usr/bin/env python3
"""The state of PyTorch's optimizers as a state file of `optimizers`, and back.

    python torch_state.py export CHECKPOINT STATE --rule Adam [--names FILE] [--step N]
    python torch_state.py import STATE CHECKPOINT [--names FILE]

An import into a CHECKPOINT that is there replaces what is under "optimizer" and leaves all else, the model, as it is. Needs `torch` and `safetensors`; its results are held to PyTorch 2.15. CHECKPOINT is written and read by `torch.save` and `torch.load`:
a dictionary with `optimizer.state_dict()` under "optimizer" and, to be exported, `model.state_dict()` under "model". In a program:

    from torch_state import from_file, to_file

    to_file("run.safetensors", "Adam", optimizer.state_dict(), dict(model.named_parameters()))
    optimizer.load_state_dict(from_file("run.safetensors", [name for name, _ in model.named_parameters()]))

PyTorch knows parameters by number, in the order in which its optimizer took them; state files know them by name. So the names must
be given in that order: those of `model.named_parameters()` for `torch.optim.Adam(model.parameters())`, those of one group after the
other for groups. They stand in a text FILE, one a line. An optimizer that was made of `model.named_parameters()` keeps the names
itself, and they need not be given for an export.

`RULES` is the table of optimizers and of the names of their arrays. Options go along: rates, betas and the like. What has no
counterpart is an error: `maximize`, parameters or state other than float32, a rule or a setting that PyTorch lacks, a rate that is a
schedule and was never used. Options that PyTorch's optimizer does not know, such as those that schedulers keep in its groups, stay on
its side: they are not exported, and an import keeps those of the CHECKPOINT, or of the groups that `from_file` is given. Left behind by
an import are averages (`ema`), the loss scale and what is frozen.

- PyTorch counts updates for each parameter, `optimizers` for all of them. Where the counts differ, an export wants `step`, which then
  holds for every parameter. SGD counts none and always wants it; it matters to schedules only.
- A rate that a scheduler has changed since the last update is exported as the new one.
- The parameters are the model's and in no state file.
"""
import argparse
import itertools
import json
import math
import os
import struct
from dataclasses import dataclass, field

import torch
from safetensors import safe_open
from safetensors.torch import save_file

VERSION = "2"


@dataclass(frozen=True)
class Rule:
    """How an optimizer of PyTorch is called here."""

    name: str
    #: Slots, with torch's name and the option without which there is none.
    slots: list
    #: Fields, with torch's option: those whose names differ, beside `COMMON`.
    options: dict = field(default_factory=dict)
    #: Fields that are no option of torch's, with the value that makes the rule torch's.
    fixed: dict = field(default_factory=dict)
    #: Torch's options that the rule itself stands for, with their values.
    implied: dict = field(default_factory=dict)
    #: Whether a parameter's first update is unlike the others, so that torch must find no state.
    first_differs: bool = False


#: Options of one name on both sides.
COMMON = {"lr", "weight_decay", "beta1", "beta2", "eps", "amsgrad", "momentum", "dampening", "nesterov", "centered", "lr_decay",
          "momentum_decay", "decoupled_weight_decay", "rho", "etas", "step_sizes", "lambd", "alpha", "t0"}

#: Options that are how torch computes, not what.
IGNORED = {"params", "param_names", "foreach", "capturable", "differentiable", "fused", "maximize"}

MOMENTS = [("moment1", "exp_avg", None), ("moment2", "exp_avg_sq", None)]
AMSGRAD = [*MOMENTS, ("vhat", "max_exp_avg_sq", "amsgrad")]

RULES = {
    "Adam": Rule("adam", AMSGRAD, {"use_amsgrad": "amsgrad"},
                 {"corrected_eps": True, "use_nesterov": False}, {"decoupled_weight_decay": False}),
    "AdamW": Rule("adamw", AMSGRAD, implied={"decoupled_weight_decay": True}),
    "SGD": Rule("sgd", [("accum", "momentum_buffer", "momentum")], first_differs=True),
    "RMSprop": Rule("rms_prop", [("ms", "square_avg", None), ("moment", "momentum_buffer", "momentum"), ("mg", "grad_avg", "centered")],
                    {"decay": "alpha", "epsilon": "eps"}, {"initial_ms": 0.0, "eps_outside": True, "lr_outside": True}),
    "Adagrad": Rule("adagrad", [("accum", "sum", None)], {"epsilon": "eps", "accum": "initial_accumulator_value"},
                    {"update_slots": True}),
    "Adamax": Rule("ada_max", [("moment1", "exp_avg", None), ("moment2", "exp_inf", None)], fixed={"eps_inside": True}),
    "NAdam": Rule("nadam", MOMENTS),
    "RAdam": Rule("radam", MOMENTS),
    "Adadelta": Rule("adadelta", [("accum", "square_avg", None), ("accum_update", "acc_delta", None)], {"epsilon": "eps"}),
    "Rprop": Rule("rprop", [("prev", "prev", None), ("step_size", "step_size", None)], fixed={"weight_decay": 0.0}, first_differs=True),
    "ASGD": Rule("asgd", [("ax", "ax", None)], first_differs=True),
}


def to_file(path, rule, state, parameters, step=None):
    """Writes the state of an optimizer of PyTorch to a state file.

    `rule` is the class of the optimizer, as "AdamW"; `state` its `state_dict()`; `parameters` maps names to tensors, of which only
    shape and type are used: in the order in which the optimizer took them, unless `state` has their names. `step` is the number of
    updates so far: needed if the parameters' counts differ or there are none.
    Raises `ValueError` for what has no counterpart in a state file; then nothing is written.
    """
    groups = state["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    if all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
    else:
        names = list(parameters)
    if len(names) != len(numbers) or len(set(names)) != len(names):
        raise ValueError(f"the optimizer has {len(numbers)} parameters, the names are {names}")
    unknown = [name for name in names if name not in parameters]
    if unknown:
        raise ValueError(f"no parameters are called {unknown}")
    kept = {name: state["state"].get(number, {}) for name, number in zip(names, numbers)}
    step = _step(kept, step)

    arrays, members, described = {}, [], []
    remaining = iter(names)
    for index, group in enumerate(groups):
        group = _known(rule, group)
        own, options = _rule(rule, group), _flat(group)
        config = _config(own, options)
        lr, decay = config["lr"], config.get("weight_decay", 0.0)
        described.append({
            "name": None, "rule": own.name, "kernel": own.name, "config": {"rule": own.name, **config}, "lr": lr, "weight_decay": decay,
            "plateau": None, "beta_powers": _beta_powers(own, config, step), "previous_lr": lr if step else None})
        for name in itertools.islice(remaining, len(group["params"])):
            parameter, found = parameters[name], kept[name]
            if parameter.dtype != torch.float32:
                raise ValueError(f"{name} is {parameter.dtype}: only float32 parameters can be exported")
            updated = _updated(found, own, options, step)
            _check_derived(name, own, options, found)
            for slot, theirs, option in own.slots:
                if option is None or options[option]:
                    arrays[f"state.{name}.{slot}"] = _array(name, theirs, found.get(theirs), parameter, updated)
            members.append({
                "name": name, "shape": list(parameter.shape), "dtype": "f32", "group": index, "updated": updated, "frozen": False,
                "seeded": step > 0, "master": "f32", "state": "f32", "ema": False})
    metadata = {
        "format": "optimizers", "version": VERSION, "library": f"torch_state.py, PyTorch {torch.__version__}", "step": str(step),
        "seed": "0", "loss_scale": json.dumps({"plain": 1.0}), "guard": "null", "groups": json.dumps(described, allow_nan=False),
        "parameters": json.dumps(members)}
    save_file(arrays, path, metadata)


def from_file(path, names=None, groups=None):
    """What `load_state_dict` of an optimizer of PyTorch takes, from a state file.

    `names` are those of the parameters in the order in which the optimizer took them; without them the file's order. The optimizer
    must be of the file's rule and have its groups; it gets the file's rates and other options. `groups` are its own `param_groups`:
    what they have beside these, for schedulers, is kept.
    Raises `ValueError` for what PyTorch has no counterpart for.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != "optimizers" or metadata.get("version") != VERSION:
            raise ValueError(f"{path} is no state file of version {VERSION}")
        step, saved = int(metadata["step"]), json.loads(metadata["groups"])
        members = {member["name"]: member for member in json.loads(metadata["parameters"])}
        if names is None:
            names = sorted(members, key=lambda name: members[name]["group"])
        if sorted(names) != sorted(members):
            raise ValueError(f"the file has the parameters {sorted(members)}, not {sorted(names)}")
        runs = [(index, list(run)) for index, run in itertools.groupby(names, lambda name: members[name]["group"])]
        if len({index for index, _ in runs}) != len(runs):
            raise ValueError("the parameters of a group must stand together in the names")

        if groups is not None and len(groups) != len(runs):
            raise ValueError(f"the file has {len(runs)} groups, the optimizer {len(groups)}")
        state, described = {}, []
        number = itertools.count()
        for index, run in runs:
            rule, options, previous_lr = _options(saved[index])
            numbers = list(itertools.islice(number, len(run)))
            kept = groups[len(described)] if groups is not None else {}
            described.append({**kept, **options, "params": numbers})
            options = _flat(options)
            for at, name in zip(numbers, run):
                if members[name]["dtype"] != "f32":
                    raise ValueError(f"{name} is {members[name]['dtype']}: only f32 parameters can be imported")
                if rule.first_differs and not members[name]["updated"]:
                    continue
                found = {} if rule.name == "sgd" else {"step": torch.tensor(float(step))}
                derived = _derived(rule, {**options, "lr": previous_lr}, step)
                found.update({key: torch.tensor(value) for key, value in derived.items()})
                for slot, theirs, option in rule.slots:
                    if option is None or options[option]:
                        found[theirs] = _tensor(file, f"state.{name}.{slot}")
                if found:
                    state[at] = found
    return {"state": state, "param_groups": described}


def _step(kept, step):
    """The number of updates, from each parameter's own count if they agree."""
    counts = {name: int(found["step"]) if "step" in found else None for name, found in kept.items()}
    if step is not None:
        return step
    if len(set(counts.values())) == 1 and None not in counts.values():
        return next(iter(counts.values()))
    if set(counts.values()) <= {None}:
        raise ValueError("the optimizer keeps no count of updates: give the step")
    raise ValueError(f"the parameters have different numbers of updates, {counts}: give the step that is to hold for all")


def _rule(name, options):
    """The counterpart of an optimizer's class with these options."""
    if options.get("maximize"):
        raise ValueError("there is no counterpart of maximize")
    if name in ("Adam", "AdamW"):
        name = "AdamW" if options.get("decoupled_weight_decay", name == "AdamW") else "Adam"
    if name not in RULES:
        raise ValueError(f"there is no counterpart of {name}: there is one of {', '.join(RULES)}")
    return RULES[name]


def _known(name, group):
    """A group without the options that are a scheduler's or the caller's: those that the class does not know."""
    known = IGNORED | set(getattr(torch.optim, name)([torch.zeros(1)]).defaults) if name in RULES else set(group)
    return {option: value for option, value in group.items() if option in known}


def _flat(options):
    """Options with `beta1` and `beta2` in place of `betas`."""
    flat = {key: value for key, value in options.items() if key != "betas"}
    if "betas" in options:
        flat["beta1"], flat["beta2"] = options["betas"]
    return flat


def _field(rule, option):
    """Our name of an option."""
    return next((ours for ours, theirs in rule.options.items() if theirs == option), option)


def _config(rule, options):
    """Our hyper-parameters."""
    def plain(value):
        if isinstance(value, (tuple, list)):
            return [float(x) for x in value]
        return value if isinstance(value, bool) else float(value)

    known = COMMON | set(rule.options.values())
    strange = [option for option in options if option not in known | IGNORED]
    if strange:
        raise ValueError(f"there is no counterpart of {strange}")
    taken = {option: value for option, value in options.items() if option not in IGNORED and option not in rule.implied}
    return {**{_field(rule, option): plain(value) for option, value in taken.items()}, **rule.fixed}


def _options(group):
    """The counterpart of a group's rule, torch's options, and the rate of the last update."""
    name, config = group["rule"], group["config"]
    rule = next((rule for rule in RULES.values() if rule.name == name), None)
    if rule is None or config is None:
        raise ValueError(f"PyTorch has no counterpart of {name}")
    previous_lr, decay = group["previous_lr"], group["weight_decay"]
    lr = group["lr"] if isinstance(group["lr"], (int, float)) else previous_lr
    if lr is None or not isinstance(decay, (int, float)):
        raise ValueError(f"the rate or the weight decay of {name} is a schedule")
    ours = {**config, "lr": lr, "weight_decay": decay}
    other = [f"{key} = {ours.get(key)}" for key, value in rule.fixed.items() if ours.get(key) != value]
    if other:
        raise ValueError(f"PyTorch has no {name} with {', '.join(other)}")
    kind = next(getattr(torch.optim, name) for name, other in RULES.items() if other is rule)
    options = dict(kind([torch.zeros(1)], lr=lr).defaults)
    for option in set(options) - IGNORED - set(rule.implied) - {"betas"}:
        value = ours[_field(rule, option)]
        options[option] = tuple(value) if isinstance(value, list) else value
    if "betas" in options:
        options["betas"] = (ours["beta1"], ours["beta2"])
    return rule, options, lr if previous_lr is None else previous_lr


def _updated(found, rule, options, step):
    """Whether a parameter was ever updated."""
    if "step" in found:
        return int(found["step"]) > 0
    if rule.name == "sgd":
        return step > 0 and (not options["momentum"] or found.get("momentum_buffer") is not None)
    return False


def _array(name, theirs, found, parameter, updated):
    """One array as it is saved."""
    if found is None and not updated:
        return torch.zeros(parameter.shape)
    if found is None or found.shape != parameter.shape or found.dtype != torch.float32:
        is_this = "missing" if found is None else f"{found.dtype} of shape {list(found.shape)}"
        raise ValueError(f"{theirs} of {name} is {is_this}, expected float32 of shape {list(parameter.shape)}")
    return found.detach().cpu().contiguous().clone()


def _tensor(file, name):
    if name not in file.keys():
        raise ValueError(f"the array {name} is missing")
    tensor = file.get_tensor(name)
    if tensor.dtype != torch.float32:
        raise ValueError(f"the array {name} is {tensor.dtype}: only state kept in f32 can be imported")
    return tensor


def _single(x):
    """A number rounded to float32."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def _product(factors):
    """The running product of numbers, kept in float32; ends where it no longer changes."""
    product = 1.0
    for factor in factors:
        before, product = product, _single(product * _single(factor))
        if product == before:
            break
    return product


def _beta_powers(rule, config, step):
    """The bits of the running powers of betas, which `optimizers` keeps for rules that have MindSpore's form too."""
    keeps = rule.name in ("adam", "ada_max")
    powers = [_product(itertools.repeat(config[beta] if keeps else 0.0, step)) for beta in ("beta1", "beta2")]
    return [struct.unpack("<I", struct.pack("<f", power))[0] for power in powers]


def _derived(rule, options, step):
    """Numbers that PyTorch keeps for a parameter beside its count, and `optimizers` makes of the count and the options."""
    if rule.name == "nadam":
        beta1, decay = options["beta1"], options["momentum_decay"]
        momenta = (beta1 * (1.0 - 0.5 * 0.96 ** (t * decay)) for t in range(1, step + 1))
        return {"mu_product": _product(momenta)}
    if rule.name == "asgd":
        lr, lambd = options["lr"], options["lambd"]
        eta = lr / (1.0 + lambd * lr * step) ** options["alpha"]
        return {"eta": eta, "mu": 1.0 / max(1.0, step - options["t0"])}
    return {}


def _check_derived(name, rule, options, found):
    """Refuses what an import would not give back: options that have changed in between."""
    for key, value in _derived(rule, options, int(found.get("step", 0))).items():
        if key in found and not math.isclose(float(found[key]), value, rel_tol=1e-4, abs_tol=1e-12):
            raise ValueError(f"{key} of {name} is {float(found[key])}, expected {value} with these options: were they changed "
                             "since the last update?")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="from PyTorch to a state file")
    export.add_argument("checkpoint")
    export.add_argument("state")
    export.add_argument("--rule", required=True, choices=RULES, help="the class of the optimizer")
    export.add_argument("--step", type=int, help="the number of updates so far, if the optimizer does not say")
    load = commands.add_parser("import", help="from a state file to PyTorch")
    load.add_argument("state")
    load.add_argument("checkpoint")
    for command in (export, load):
        command.add_argument("--names", help="a text file: the parameters' names in the optimizer's order, one a line")
    arguments = parser.parse_args()

    names = None
    if arguments.names:
        with open(arguments.names) as file:
            names = file.read().splitlines()
    try:
        if arguments.command == "import":
            checkpoint = {}
            if os.path.exists(arguments.checkpoint):
                checkpoint = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
            groups = checkpoint["optimizer"]["param_groups"] if "optimizer" in checkpoint else None
            checkpoint["optimizer"] = from_file(arguments.state, names, groups)
            temporary = f"{arguments.checkpoint}.{os.getpid()}.tmp"
            torch.save(checkpoint, temporary)
            os.replace(temporary, arguments.checkpoint)
        else:
            checkpoint = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
            model, state = checkpoint["model"], checkpoint["optimizer"]
            if names is None and not all("param_names" in group for group in state["param_groups"]):
                raise ValueError("the optimizer does not know the names: give them with --names")
            parameters = {name: model[name] for name in names if name in model} if names else model
            to_file(arguments.state, arguments.rule, state, parameters, arguments.step)
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
