#!/usr/bin/env python3
"""Makes the golden trajectories of rules and presets that MindSpore does not have (see README.md).

    python make.py [FOLDER]        writes manifest.json, data.safetensors and plateau.json (default: beside this file)

Every case is run by the real library in float32 on the CPU: PyTorch, optax, or pytorch_optimizer (Adan). Every case is also
computed by the float64 formulas below, which share no code with those libraries; the two must agree to `BOUND`.
All inputs come from a seeded numpy RandomState, whose numbers are the same in every numpy version.
"""
import collections
import importlib.metadata
import json
import math
import os
import sys
from types import SimpleNamespace

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
import numpy as np
import optax
import pytorch_optimizer
import torch
from safetensors.numpy import save

STEPS = 12
SEED = 20220813
BOUND = 1e-5  # float32 against float64, of the tensor's largest absolute value

# ---------------------------------------------------------------------------------------------------------------- inputs

DATASETS = {
    "main": [("fc.weight", (5, 7)), ("conv.weight", (3, 16, 1, 2)), ("bn.gamma", (6,)), ("out.bias", (1,))],
    # a quarter of the gradients are exactly 0, the first ones too
    "zeros": [("fc.weight", (4, 5)), ("bn.gamma", (3,)), ("out.bias", (1,))],
}


def make_inputs():
    inputs = {}
    for number, (dataset, tensors) in enumerate(DATASETS.items()):
        random = np.random.RandomState(SEED + number)
        for i, (_, shape) in enumerate(tensors):
            inputs[f"{dataset}/p/{i}"] = random.randn(*shape).astype(np.float32)
            drift = 0.4 * random.randn(*shape)
            g = np.stack([drift + 0.5 * random.randn(*shape) for _ in range(STEPS)])
            if dataset == "zeros":
                g[random.rand(*g.shape) < 0.25] = 0.0
            inputs[f"{dataset}/g/{i}"] = g.astype(np.float32)
    return inputs


# ----------------------------------------------------------------------------------------------------------------- cases

LR_LIST = [round(0.05 * (1.0 - 0.06 * i) * (1.3 if i % 3 == 1 else 1.0), 6) for i in range(STEPS)]
TORCH = {"preset": "torch"}
OPTAX_ADAN = ("optax.adan (0.2.8) weighs the gradient difference by 1 - b2 where the paper and its authors' code weigh it by b2 "
              "(b2 being the decay of the mean, 0.92): 0.08 instead of 0.92. Reported in optax's pull request 1715")


def constant(value):
    return {"kind": "float", "value": value}


def make_cases():
    cases = []

    def add(id, optimizer, lr=None, dataset="main", groups=None, origin="torch", bug=None, **kwargs):
        if isinstance(lr, float):
            lr = constant(lr)
        elif lr is not None:
            lr = {"kind": "list", "values": lr}
        cases.append(dict(id=f"{id}@{origin}", optimizer=optimizer, origin=origin, dataset=dataset, learning_rate=lr,
                          kwargs=kwargs, groups=groups, bug=bug))

    def two_groups(lr, decay=0.3, first=(1, 2), second=(0, 3)):
        """The first group has a rate and a decay of its own, the second takes the optimizer's."""
        first = {"params": list(first), "lr": lr if isinstance(lr, dict) else constant(lr)}
        if decay is not None:
            first["weight_decay"] = decay
        return [first, {"params": list(second)}]

    Z = {"dataset": "zeros"}
    adam = dict(beta1=0.8, beta2=0.95, eps=1e-3)

    # AdamW: torch.optim.AdamW
    add("adamw.default", "AdamW")
    add("adamw.lr", "AdamW", 0.02, **Z)
    add("adamw.betas_eps_wd", "AdamW", 0.02, **adam, weight_decay=0.2)
    add("adamw.no_wd", "AdamW", 0.02, weight_decay=0.0, **Z)
    add("adamw.amsgrad", "AdamW", 0.02, amsgrad=True)
    add("adamw.amsgrad_betas_eps_wd", "AdamW", 0.02, amsgrad=True, **adam, weight_decay=0.2, **Z)
    add("adamw.lr_list", "AdamW", LR_LIST, weight_decay=0.1, **Z)
    add("adamw.groups", "AdamW", 0.02, groups=two_groups(0.05), **adam)
    add("adamw.groups_lr_list", "AdamW", 0.02, weight_decay=0.1,
        groups=two_groups({"kind": "list", "values": LR_LIST}, 0.0, (1,), (0, 2)), **Z)

    # NAdam: torch.optim.NAdam
    add("nadam.default", "NAdam")
    add("nadam.betas_eps", "NAdam", 0.02, **adam)
    add("nadam.momentum_decay", "NAdam", 0.02, momentum_decay=0.5, **Z)
    add("nadam.no_momentum_decay", "NAdam", 0.02, momentum_decay=0.0, **Z)
    add("nadam.wd", "NAdam", 0.02, weight_decay=0.1, **Z)
    add("nadam.decoupled_wd", "NAdam", 0.02, weight_decay=0.1, decoupled_weight_decay=True, **Z)
    add("nadam.lr_list", "NAdam", LR_LIST, **Z)
    add("nadam.groups", "NAdam", 0.02, groups=two_groups(0.05), weight_decay=0.05, **adam, decoupled_weight_decay=True)

    # RAdam: torch.optim.RAdam. With beta2 = 0.999 the rectified update begins at t = 6
    add("radam.default", "RAdam")
    add("radam.betas_eps", "RAdam", 0.02, **adam)
    add("radam.never_rectified", "RAdam", 0.02, beta2=0.6, **Z)  # rho_inf = 4
    add("radam.wd", "RAdam", 0.02, weight_decay=0.1, **Z)
    add("radam.decoupled_wd", "RAdam", 0.02, weight_decay=0.1, decoupled_weight_decay=True, **Z)
    add("radam.lr_list", "RAdam", LR_LIST, **Z)
    add("radam.groups", "RAdam", 0.02, groups=two_groups(0.05), weight_decay=0.05, eps=1e-3)

    # Lion: optax.lion, which has no default rate and a default decay of 1e-3
    add("lion.lr", "Lion", 0.01, weight_decay=0.0, origin="optax")
    add("lion.wd", "Lion", 0.01, weight_decay=1e-3, origin="optax", **Z)
    add("lion.betas_wd", "Lion", 0.01, beta1=0.8, beta2=0.95, weight_decay=0.2, origin="optax", **Z)
    add("lion.lr_list", "Lion", LR_LIST, weight_decay=0.1, origin="optax", **Z)
    add("lion.groups", "Lion", 0.01, groups=two_groups(0.03), weight_decay=0.1, origin="optax")

    # Adan: pytorch_optimizer.Adan, and optax.adan at beta2 = 0.5, the one place where optax agrees with the paper
    P = {"origin": "pytorch_optimizer"}
    three = dict(beta1=0.9, beta2=0.8, beta3=0.95, eps=1e-3)
    add("adan.default", "Adan", **P)
    add("adan.betas_eps", "Adan", 0.02, **three, **P)
    add("adan.wd", "Adan", 0.02, weight_decay=0.2, **P, **Z)
    add("adan.no_prox_wd", "Adan", 0.02, weight_decay=0.2, no_prox=True, **P, **Z)
    add("adan.lr_list", "Adan", LR_LIST, **P, **Z)
    add("adan.groups", "Adan", 0.02, groups=two_groups(0.05), weight_decay=0.05, **three, **P)
    add("adan.half_beta2_no_prox_wd", "Adan", 0.02, beta2=0.5, weight_decay=0.2, no_prox=True, origin="optax", **Z)
    add("adan.lr", "Adan", 0.02, no_prox=True, origin="optax", bug=OPTAX_ADAN, **Z)

    # Adam of PyTorch: torch.optim.Adam
    add("adam.torch_default", "Adam", **TORCH)
    add("adam.torch_betas_eps", "Adam", 0.02, **TORCH, **adam)
    add("adam.torch_eps", "Adam", 0.02, **TORCH, eps=1e-3, **Z)
    add("adam.torch_amsgrad", "Adam", 0.02, **TORCH, use_amsgrad=True, **Z)
    add("adam.torch_amsgrad_betas_eps_wd", "Adam", 0.02, **TORCH, use_amsgrad=True, **adam, weight_decay=0.1)
    add("adam.torch_wd", "Adam", 0.02, **TORCH, weight_decay=0.1, **Z)
    add("adam.torch_lr_list", "Adam", LR_LIST, **TORCH, **Z)
    add("adam.torch_groups", "Adam", 0.02, groups=two_groups(0.05), **TORCH, weight_decay=0.02, eps=1e-3)

    # SGD of PyTorch: torch.optim.SGD
    add("sgd.torch_default", "SGD", **TORCH, **Z)
    add("sgd.torch_momentum", "SGD", 0.1, **TORCH, momentum=0.9)
    add("sgd.torch_dampening", "SGD", 0.1, **TORCH, momentum=0.9, dampening=0.5, **Z)
    add("sgd.torch_dampening_no_momentum", "SGD", 0.1, **TORCH, dampening=0.5, **Z)
    add("sgd.torch_nesterov_wd", "SGD", 0.1, **TORCH, momentum=0.9, nesterov=True, weight_decay=0.1)
    add("sgd.torch_wd", "SGD", 0.1, **TORCH, weight_decay=0.1, **Z)
    add("sgd.torch_lr_list", "SGD", LR_LIST, **TORCH, momentum=0.9, **Z)
    add("sgd.torch_groups", "SGD", 0.1, groups=two_groups(0.2), **TORCH, momentum=0.9, dampening=0.1, weight_decay=0.02)

    # RMSProp of PyTorch: torch.optim.RMSprop
    add("rmsprop.torch_default", "RMSProp", **TORCH)
    add("rmsprop.torch_eps_momentum", "RMSProp", 0.02, **TORCH, decay=0.8, epsilon=0.1, momentum=0.9)
    add("rmsprop.torch_centered", "RMSProp", 0.02, **TORCH, centered=True, **Z)
    add("rmsprop.torch_centered_eps_momentum_wd", "RMSProp", 0.02, **TORCH, centered=True, decay=0.8, epsilon=0.1,
        momentum=0.3, weight_decay=0.1, **Z)
    add("rmsprop.torch_wd", "RMSProp", 0.02, **TORCH, weight_decay=0.1, **Z)
    add("rmsprop.torch_momentum_lr_list", "RMSProp", LR_LIST, **TORCH, momentum=0.9, **Z)  # the rate is outside `moment`
    add("rmsprop.torch_groups", "RMSProp", 0.02, groups=two_groups(0.01), **TORCH, decay=0.8, momentum=0.3)

    # Adagrad of PyTorch: torch.optim.Adagrad
    add("adagrad.torch_default", "Adagrad", **TORCH, **Z)
    add("adagrad.torch_accum_eps", "Adagrad", 0.1, **TORCH, accum=0.5, epsilon=0.1)
    add("adagrad.torch_lr_decay", "Adagrad", 0.1, **TORCH, lr_decay=0.3)
    add("adagrad.torch_wd", "Adagrad", 0.1, **TORCH, weight_decay=0.1, **Z)
    add("adagrad.torch_lr_decay_list", "Adagrad", LR_LIST, **TORCH, lr_decay=0.3, **Z)
    add("adagrad.torch_groups", "Adagrad", 0.1, groups=two_groups(0.05, 0.3, (1,), (0, 2)), **TORCH, lr_decay=0.1, **Z)

    # AdaMax, Adadelta, Rprop, ASGD of PyTorch
    add("adamax.torch_default", "AdaMax", **TORCH)
    add("adamax.torch_betas_eps_wd", "AdaMax", 0.02, **TORCH, beta1=0.8, beta2=0.7, eps=0.1, weight_decay=0.1, **Z)
    add("adamax.torch_lr_list", "AdaMax", LR_LIST, **TORCH, **Z)
    add("adadelta.torch_default", "Adadelta", **TORCH, **Z)
    add("adadelta.torch_rho_eps_wd", "Adadelta", 0.5, **TORCH, rho=0.8, epsilon=1e-2, weight_decay=0.1)
    add("rprop.torch_default", "Rprop", **TORCH, **Z)
    add("rprop.torch_etas", "Rprop", 0.02, **TORCH, etas=[0.3, 1.5], step_sizes=[0.005, 0.04])
    add("rprop.torch_lr_list", "Rprop", LR_LIST, **TORCH, **Z)  # only the first rate matters
    add("asgd.torch_default", "ASGD", **TORCH, **Z)
    add("asgd.torch_hyper_wd", "ASGD", 0.1, **TORCH, lambd=0.05, alpha=0.5, t0=3.0, weight_decay=0.1)
    add("asgd.torch_lr_list", "ASGD", LR_LIST, **TORCH, lambd=0.05, t0=4.0, **Z)
    return cases


# ----------------------------------------------------------------------- names: ours on the left, the library's on the right

CLASSES = {
    "AdamW": torch.optim.AdamW, "NAdam": torch.optim.NAdam, "RAdam": torch.optim.RAdam, "Adam": torch.optim.Adam,
    "SGD": torch.optim.SGD, "RMSProp": torch.optim.RMSprop, "Adagrad": torch.optim.Adagrad, "AdaMax": torch.optim.Adamax,
    "Adadelta": torch.optim.Adadelta, "Rprop": torch.optim.Rprop, "ASGD": torch.optim.ASGD, "Adan": pytorch_optimizer.Adan,
}

OPTIONS = {"use_amsgrad": "amsgrad", "decay": "alpha", "epsilon": "eps", "accum": "initial_accumulator_value",
           "no_prox": "weight_decouple"}

# What is left after the last step. A slot that the library does not keep for a case (amsgrad off, momentum 0) is not stored.
MOMENTS = {"moment1": "exp_avg", "moment2": "exp_avg_sq"}
SLOTS = {
    "AdamW": {**MOMENTS, "vhat": "max_exp_avg_sq"},
    "Adam": {**MOMENTS, "vhat": "max_exp_avg_sq"},
    "NAdam": {**MOMENTS, "mu_product": "mu_product"},                      # a number a parameter, stored with shape [1]
    "RAdam": MOMENTS,
    "SGD": {"accum": "momentum_buffer"},
    "RMSProp": {"ms": "square_avg", "moment": "momentum_buffer", "mg": "grad_avg"},
    "Adagrad": {"accum": "sum"},
    "AdaMax": {"moment1": "exp_avg", "moment2": "exp_inf"},
    "Adadelta": {"accum": "square_avg", "accum_update": "acc_delta"},
    "Rprop": {"prev": "prev", "step_size": "step_size"},
    "ASGD": {"ax": "ax", "mu": "mu", "eta": "eta"},                        # mu and eta: shape [1]
    "Adan": {**MOMENTS, "moment_diff": "exp_avg_diff", "prev": "previous_grad"},  # the library keeps -prev
    ("optax", "Lion"): {"moment1": "mu"},
    ("optax", "Adan"): {"moment1": "m", "moment_diff": "v", "moment2": "n", "prev": "g"},
}

# Defaults of the libraries, for the formulas. `run_torch` checks the rates, and with them that a preset means what it says.
ADAM = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)
DEFAULTS = {
    "AdamW": dict(ADAM, lr=1e-3, weight_decay=1e-2, amsgrad=False),
    "NAdam": dict(ADAM, lr=2e-3, momentum_decay=4e-3, decoupled_weight_decay=False),
    "RAdam": dict(ADAM, lr=1e-3, decoupled_weight_decay=False),
    "Lion": dict(beta1=0.9, beta2=0.99, weight_decay=1e-3),
    "Adan": dict(lr=1e-3, beta1=0.98, beta2=0.92, beta3=0.99, eps=1e-8, weight_decay=0.0, no_prox=False),
    "Adam": dict(ADAM, lr=1e-3, use_amsgrad=False),
    "SGD": dict(lr=1e-3, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0),
    "RMSProp": dict(lr=1e-2, decay=0.99, epsilon=1e-8, momentum=0.0, centered=False, weight_decay=0.0),
    "Adagrad": dict(lr=1e-2, accum=0.0, epsilon=1e-10, lr_decay=0.0, weight_decay=0.0),
    "AdaMax": dict(ADAM, lr=2e-3),
    "Adadelta": dict(lr=1.0, rho=0.9, epsilon=1e-6, weight_decay=0.0),
    "Rprop": dict(lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50.0), weight_decay=0.0),
    "ASGD": dict(lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0),
}


def group_of(case, i):
    """The group of parameter `i`; empty without groups."""
    return next((group for group in case["groups"] or [] if i in group["params"]), {})


def rate(case, i, s):
    """The rate of parameter `i` at the step index `s`; None is the library's default."""
    lr = group_of(case, i).get("lr", case["learning_rate"])
    return lr and (lr["value"] if lr["kind"] == "float" else lr["values"][s])


# ---------------------------------------------------------------------------------------------------- the libraries' results

def run_torch(case, inputs):
    """One `torch.optim` optimizer (or pytorch_optimizer's Adan) over all parameters, groups as the case lists them."""
    optimizer, dataset = case["optimizer"], case["dataset"]
    params = [torch.nn.Parameter(torch.tensor(inputs[f"{dataset}/p/{i}"])) for i in range(len(DATASETS[dataset]))]
    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in case["kwargs"].items() if k != "preset"}
    if any(k.startswith("beta") for k in kwargs):
        betas = {k: v for k, v in DEFAULTS[optimizer].items() if k.startswith("beta")}
        kwargs["betas"] = tuple(kwargs.pop(k, default) for k, default in betas.items())
    if case["learning_rate"]:
        kwargs["lr"] = (case["learning_rate"].get("values") or [case["learning_rate"].get("value")])[0]
    groups = [dict({"params": [params[i] for i in group["params"]]}, **{k: group[k] for k in ("weight_decay",) if k in group})
              for group in case["groups"] or [{"params": range(len(params))}]]
    optimizer = CLASSES[optimizer](groups, **{OPTIONS.get(k, k): v for k, v in kwargs.items()})
    if not case["learning_rate"]:
        assert optimizer.defaults["lr"] == DEFAULTS[case["optimizer"]]["lr"], case["id"]

    trajectory = [[] for _ in params]
    for s in range(STEPS):
        for number, group in enumerate(optimizer.param_groups):
            first = case["groups"][number]["params"][0] if case["groups"] else 0
            if rate(case, first, s) is not None:
                group["lr"] = rate(case, first, s)
        for i, p in enumerate(params):
            p.grad = torch.tensor(inputs[f"{dataset}/g/{i}"][s])  # a copy: Adan overwrites it
        optimizer.step()
        for i, p in enumerate(params):
            trajectory[i].append(p.detach().numpy().copy())

    slots = {}
    for i, p in enumerate(params):
        for ours, theirs in SLOTS[case["optimizer"]].items():
            value = optimizer.state[p].get(theirs)
            if value is not None:
                sign = -1.0 if theirs == "previous_grad" else 1.0
                slots[f"{ours}/{i}"] = sign * np.atleast_1d(value.numpy())
    return trajectory, slots


def run_optax(case, inputs):
    """One optax transformation a parameter: Lion and Adan work element by element, so this is the same as one over all."""
    dataset, trajectory, slots = case["dataset"], [], {}
    for i in range(len(DATASETS[dataset])):
        kwargs = {k.replace("beta", "b"): v for k, v in case["kwargs"].items() if k != "no_prox"}
        if "weight_decay" in group_of(case, i):
            kwargs["weight_decay"] = group_of(case, i)["weight_decay"]
        if case["optimizer"] == "Adan":
            assert case["kwargs"]["no_prox"], "optax's decay is AdamW's"
            kwargs["eps_root"] = 0.0  # a second epsilon, inside the root, which the paper does not have (optax: 1e-8)
        rates = jnp.asarray([rate(case, i, s) for s in range(STEPS)], jnp.float32)
        optimizer = getattr(optax, case["optimizer"].lower())(lambda count: rates[count], **kwargs)
        p = jnp.asarray(inputs[f"{dataset}/p/{i}"])
        state = optimizer.init(p)
        trajectory.append([])
        for s in range(STEPS):
            updates, state = optimizer.update(jnp.asarray(inputs[f"{dataset}/g/{i}"][s]), state, p)
            p = optax.apply_updates(p, updates)
            trajectory[i].append(np.array(p))
        for ours, theirs in SLOTS["optax", case["optimizer"]].items():
            slots[f"{ours}/{i}"] = np.array(getattr(state[0], theirs))
    return trajectory, slots


# ------------------------------------------------------------------------------------------------- the formulas, in float64
# p parameter, g gradient, s slots (0 where never written), t = 1 at the first update, h hyperparameters of this parameter and
# step. Each returns the new parameter.

def mean(old, new, beta):
    return beta * old + (1 - beta) * new


def moments(g, s, h):
    s["moment1"] = mean(s["moment1"], g, h.beta1)
    s["moment2"] = mean(s["moment2"], g * g, h.beta2)
    return s["moment1"], s["moment2"]


def adam_step(p, g, s, t, h, amsgrad):
    m, v = moments(g, s, h)
    if amsgrad:
        v = s["vhat"] = np.maximum(s["vhat"], v)  # of the uncorrected mean
    m_hat, v_hat = m / (1 - h.beta1 ** t), v / (1 - h.beta2 ** t)
    return p - h.lr * m_hat / (np.sqrt(v_hat) + h.eps)


def adam(p, g, s, t, h):
    return adam_step(p, g + h.weight_decay * p, s, t, h, h.use_amsgrad)


def adamw(p, g, s, t, h):
    return adam_step(p * (1 - h.lr * h.weight_decay), g, s, t, h, h.amsgrad)


def decay(p, g, h):
    """L2 or decoupled, as `decoupled_weight_decay` says."""
    if h.decoupled_weight_decay:
        return p * (1 - h.lr * h.weight_decay), g
    return p, g + h.weight_decay * p


def nadam(p, g, s, t, h):
    p, g = decay(p, g, h)
    m, v = moments(g, s, h)
    mu = h.beta1 * (1 - 0.5 * 0.96 ** (t * h.momentum_decay))
    mu_next = h.beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * h.momentum_decay))
    product = s["mu_product"] = mu * (s["mu_product"] if t > 1 else 1.0)
    d = (1 - mu) / (1 - product) * g + mu_next / (1 - product * mu_next) * m
    return p - h.lr * d / (np.sqrt(v / (1 - h.beta2 ** t)) + h.eps)


def radam(p, g, s, t, h):
    p, g = decay(p, g, h)
    m, v = moments(g, s, h)
    m_hat = m / (1 - h.beta1 ** t)
    rho_inf = 2 / (1 - h.beta2) - 1
    rho = rho_inf - 2 * t * h.beta2 ** t / (1 - h.beta2 ** t)
    if rho <= 5:
        return p - h.lr * m_hat
    r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    return p - h.lr * r * m_hat * math.sqrt(1 - h.beta2 ** t) / (np.sqrt(v) + h.eps)


def lion(p, g, s, t, h):
    c = mean(s["moment1"], g, h.beta1)
    # no sign may hang on a rounding error
    assert np.all((c == 0) | (np.abs(c) > 1e-5)), "too close to a sign change"
    s["moment1"] = mean(s["moment1"], g, h.beta2)
    return p - h.lr * (np.sign(c) + h.weight_decay * p)


def adan(p, g, s, t, h):
    diff = g - (s["prev"] if t > 1 else g)
    m = s["moment1"] = mean(s["moment1"], g, h.beta1)
    v = s["moment_diff"] = mean(s["moment_diff"], diff, h.beta2)
    n = s["moment2"] = mean(s["moment2"], (g + h.beta2 * diff) ** 2, h.beta3)
    s["prev"] = g
    d = m / (1 - h.beta1 ** t) + h.beta2 * v / (1 - h.beta2 ** t)
    d = d / (np.sqrt(n / (1 - h.beta3 ** t)) + h.eps)
    if h.no_prox:
        return p * (1 - h.lr * h.weight_decay) - h.lr * d
    return (p - h.lr * d) / (1 + h.lr * h.weight_decay)


def sgd(p, g, s, t, h):
    d = g + h.weight_decay * p
    if h.momentum != 0:
        g = d
        d = s["accum"] = g if t == 1 else h.momentum * s["accum"] + (1 - h.dampening) * g
        if h.nesterov:
            d = g + h.momentum * d
    return p - h.lr * d


def rmsprop(p, g, s, t, h):
    g = g + h.weight_decay * p
    v = s["ms"] = mean(s["ms"], g * g, h.decay)
    if h.centered:
        s["mg"] = mean(s["mg"], g, h.decay)
        v = v - s["mg"] ** 2
    d = g / (np.sqrt(v) + h.epsilon)
    if h.momentum > 0:
        d = s["moment"] = h.momentum * s["moment"] + d
    return p - h.lr * d


def adagrad(p, g, s, t, h):
    g = g + h.weight_decay * p
    s["accum"] = (s["accum"] if t > 1 else h.accum) + g * g
    return p - h.lr / (1 + (t - 1) * h.lr_decay) * g / (np.sqrt(s["accum"]) + h.epsilon)


def adamax(p, g, s, t, h):
    g = g + h.weight_decay * p
    m = s["moment1"] = mean(s["moment1"], g, h.beta1)
    u = s["moment2"] = np.maximum(h.beta2 * s["moment2"], np.abs(g) + h.eps)
    return p - h.lr / (1 - h.beta1 ** t) * m / u


def adadelta(p, g, s, t, h):
    g = g + h.weight_decay * p
    a = s["accum"] = mean(s["accum"], g * g, h.rho)
    u = np.sqrt(s["accum_update"] + h.epsilon) / np.sqrt(a + h.epsilon) * g
    s["accum_update"] = mean(s["accum_update"], u * u, h.rho)
    return p - h.lr * u


def rprop(p, g, s, t, h):
    size = s["step_size"] if t > 1 else np.full_like(p, h.lr)
    k = np.sign(g * s["prev"])
    size = s["step_size"] = np.clip(size * np.where(k > 0, h.etas[1], np.where(k < 0, h.etas[0], 1.0)), *h.step_sizes)
    g = s["prev"] = np.where(k < 0, 0.0, g)
    return p - np.sign(g) * size


def asgd(p, g, s, t, h):
    g = g + h.weight_decay * p
    eta, mu = (s["eta"], s["mu"]) if t > 1 else (h.lr, 1.0)
    p = p * (1 - h.lambd * eta) - eta * g
    s["ax"] = p if mu == 1 else s["ax"] + mu * (p - s["ax"])
    s["eta"] = h.lr / (1 + h.lambd * h.lr * t) ** h.alpha
    s["mu"] = 1 / max(1, t - h.t0)
    return p


FORMULAS = {"AdamW": adamw, "NAdam": nadam, "RAdam": radam, "Lion": lion, "Adan": adan, "Adam": adam, "SGD": sgd,
            "RMSProp": rmsprop, "Adagrad": adagrad, "AdaMax": adamax, "Adadelta": adadelta, "Rprop": rprop, "ASGD": asgd}


def run_formula(case, inputs):
    dataset, trajectory, slots = case["dataset"], [], {}
    for i in range(len(DATASETS[dataset])):
        h = SimpleNamespace(**{**DEFAULTS[case["optimizer"]], **case["kwargs"]})
        h.weight_decay = group_of(case, i).get("weight_decay", h.weight_decay)
        p, state = inputs[f"{dataset}/p/{i}"].astype(np.float64), collections.defaultdict(float)
        trajectory.append([])
        for s in range(STEPS):
            if rate(case, i, s) is not None:
                h.lr = rate(case, i, s)
            p = FORMULAS[case["optimizer"]](p, inputs[f"{dataset}/g/{i}"][s].astype(np.float64), state, s + 1, h)
            trajectory[i].append(p)
        slots.update({f"{slot}/{i}": np.atleast_1d(value) for slot, value in state.items()})
    return trajectory, slots


# ------------------------------------------------------------------------------------------------ ReduceLROnPlateau

NAN, INF = float("nan"), float("inf")
FALLING = [5.0, 4.0, 3.5, 3.5, 3.6, 3.4, 3.4, 3.4, 3.41, 3.4, 3.3, 3.3, 3.3, 3.3, 3.3, 3.3, 3.3, 3.3, 3.3, 3.3]
RISING = [0.1, 0.3, 0.5, 0.49, 0.5, 0.51, 0.505, 0.5, 0.51, 0.6, 0.6, 0.6, 0.6, 0.6, 0.61, 0.6, 0.6, 0.6, 0.6, 0.6]
BROKEN = [2.0, NAN, NAN, INF, 1.0, INF, -INF, -5.0, NAN, -INF, 3.0, 0.0]
SIGNS = [1.0, 0.5, 0.0, -0.5, -0.50001, -0.4, -0.2, -1.0, -1.00001, -0.999, -2.0, -2.0, -2.0, -2.0]
PLATEAUS = [
    (0.1, FALLING * 2, {}),
    (0.1, FALLING, dict(factor=0.5, patience=1)),
    (0.1, FALLING, dict(factor=0.5, patience=0)),
    (0.1, FALLING, dict(factor=0.3, patience=1, cooldown=3)),
    (0.1, FALLING, dict(factor=0.5, patience=0, cooldown=2, min_lr=0.03)),
    (0.1, FALLING, dict(factor=0.7, patience=0, eps=0.02)),
    (0.1, FALLING, dict(factor=0.5, patience=0, min_lr=0.2)),
    (0.1, FALLING, dict(factor=0.5, patience=2, threshold=0.1)),
    (0.1, FALLING, dict(factor=0.5, patience=2, threshold=0.1, threshold_mode="abs")),
    (0.1, FALLING, dict(factor=0.5, patience=2, threshold=0.0)),
    (0.1, FALLING, dict(factor=0.5, patience=2, threshold=1.0)),
    (0.1, RISING, dict(mode="max", factor=0.5, patience=1)),
    (0.1, RISING, dict(mode="max", factor=0.5, patience=1, threshold=0.02, cooldown=1)),
    (0.1, RISING, dict(mode="max", factor=0.5, patience=1, threshold=0.02, threshold_mode="abs")),
    (0.1, BROKEN, dict(factor=0.5, patience=1)),
    (0.1, BROKEN, dict(mode="max", factor=0.5, patience=1, threshold_mode="abs")),
    (0.1, SIGNS, dict(factor=0.5, patience=0)),
    (0.1, SIGNS, dict(mode="max", factor=0.5, patience=0)),
    (0.0, FALLING, dict(factor=0.5, patience=0)),
    (3e-8, FALLING, dict(factor=0.5, patience=0)),
]


def run_plateau(lr, metrics, kwargs):
    """After each metric, the rate and the scheduler's memory. Numbers are written as words, which has nan and inf."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **kwargs)
    rows = []
    for metric in metrics:
        optimizer.step()
        scheduler.step(metric)
        rows.append([repr(metric), repr(optimizer.param_groups[0]["lr"]), repr(scheduler.best), scheduler.num_bad_epochs,
                     scheduler.cooldown_counter])
    return {"lr": lr, "kwargs": kwargs, "rows": rows}


def write_plateaus(folder):
    origin = "PyTorch " + torch.__version__.split("+")[0]
    columns = ["metric", "lr", "best", "num_bad_epochs", "cooldown_counter"]
    cases = ",\n".join(json.dumps(run_plateau(*case)) for case in PLATEAUS)
    with open(os.path.join(folder, "plateau.json"), "w") as file:
        file.write(f'{{"origin": {json.dumps(origin)}, ')
        file.write(f'"columns": {json.dumps(columns)},\n"cases": [\n{cases}\n]}}\n')


def difference(got, expected):
    """Of the tensor's largest absolute value."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape and np.isfinite(got).all()
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-30))


# --------------------------------------------------------------------------------------------------------------------- main

def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    torch.set_num_threads(1)
    write_plateaus(folder)
    inputs = make_inputs()
    tensors = {"inputs/" + name: value for name, value in inputs.items()}
    entries = []
    for case in make_cases():
        run = run_optax if case["origin"] == "optax" else run_torch
        trajectory, slots = run(case, inputs)
        formula, formula_slots = run_formula(case, inputs)
        assert set(slots) == set(formula_slots), (case["id"], set(slots) ^ set(formula_slots))
        p = max(difference(got, want) for i in range(len(formula)) for got, want in zip(trajectory[i], formula[i], strict=True))
        s = max([difference(slots[name], formula_slots[name]) for name in slots], default=0.0)
        print(f"{case['id']:48} parameters {p:8.1e}   slots {s:8.1e}{'   departs: ' + case['bug'] if case['bug'] else ''}")
        if case["bug"]:
            assert p > 100 * BOUND, f"{case['id']}: meets the formula now"  # shows too that the comparison can fail
        else:
            assert max(p, s) < BOUND, case["id"]
        for i, values in enumerate(trajectory):
            tensors[f"{case['id']}/p/{i}"] = np.stack(values)
        for name, value in slots.items():
            slot, i = name.split("/")
            tensors[f"{case['id']}/s/{slot}/{i}"] = np.ascontiguousarray(value, np.float32)
        entries.append({
            "id": case["id"], "optimizer": case["optimizer"], "origin": case["origin"], "dataset": case["dataset"],
            "learning_rate": case["learning_rate"], "kwargs": case["kwargs"], "groups": case["groups"], "order_params": None,
            "grad_multiplier": 1.0, "sparse_indices": None, "target": None, "steps": STEPS,
            "status": "optax-bug" if case["bug"] else "reference", "bug": case["bug"],
            "slots": sorted({name.split("/")[0] for name in slots}), "final_global_step": STEPS,
            "agreement": {"formula": float(f"{max(p, s):.2g}")},
            "semantics": "optax" if case["origin"] == "optax" else "torch"})

    versions = {name: importlib.metadata.version(name).split("+")[0]
                for name in ("torch", "optax", "jax", "pytorch_optimizer", "numpy")}
    manifest = {
        "format": 1,
        "note": "conformance tests use the cases whose status is 'reference'. Every parameter decays where a decay is set: no "
                "name is exempt. A learning_rate of null is the default of the preset or rule",
        "set": "torch", "seed": SEED, "steps": STEPS,
        "origins": {"torch": f"PyTorch {versions['torch']} run on CPU, foreach and fused off",
                    "optax": f"optax {versions['optax']} on jax {versions['jax']} run on CPU, one transformation a parameter",
                    "pytorch_optimizer": f"pytorch_optimizer {versions['pytorch_optimizer']} run on CPU under PyTorch"},
        "layout": {"inputs/<dataset>/p/<i>": "initial parameter i", "inputs/<dataset>/g/<i>": "gradients [steps, *shape]",
                   "<case>/p/<i>": "parameter i after each step, [steps, *shape]",
                   "<case>/s/<slot>/<i>": "state tensor of parameter i after the last step (a number a parameter: shape [1])"},
        "datasets": {dataset: [{"name": name, "shape": list(shape)} for name, shape in rows] for dataset, rows in DATASETS.items()},
        "versions": versions, "cases": entries, "not_run": [], "dynamic_lr": [], "schedules": [], "loss_scale": []}
    with open(os.path.join(folder, "manifest.json"), "w") as file:
        rows = [f"{json.dumps(key)}: " + ("[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if key == "cases" else json.dumps(value))
                for key, value in manifest.items()]
        file.write("{\n" + ",\n".join(rows) + "\n}\n")
    with open(os.path.join(folder, "data.safetensors"), "wb") as file:
        file.write(save(tensors))
    worst = max(entry["agreement"]["formula"] for entry in entries if not entry["bug"])
    sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in ("manifest.json", "data.safetensors")}
    print(f"{len(entries)} cases, worst difference {worst:.1e}, {sizes}")


if __name__ == "__main__":
    main()
