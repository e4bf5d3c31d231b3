"""Train CartPole by evolution strategies: rollouts are tasks, the policy is an actor, the noise is one shared object.

Run it on the two-node local cluster beside this file, or alone with ``--address local``::

    meshray up examples/cluster.yaml && python examples/evolution_strategies.py; meshray down

The result depends only on ``--seed``, not on who runs what and when.
Source: Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning" (2017).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gymnasium
import numpy as np
from matplotlib.figure import Figure

import meshray

HIDDEN, SIGMA, LEARNING_RATE, MOMENTUM = 16, 0.1, 0.04, 0.8
WEIGHTS = 6 * HIDDEN + 1  # 4 inputs and a bias for each hidden unit, one output with its bias
SCALE = np.array([2.4, 2.0, 0.21, 2.0])  # what a large observation is
EPISODES, GENERATIONS_MAX = 20, 100


def episode(weights: np.ndarray, seed: int) -> int:
    """Balance the pole with a small neural network; return for how many steps it stayed up (at most 500)."""
    first, rest = np.split(weights, [5 * HIDDEN])
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=seed)
    for step in range(500):
        inputs = np.append(observation / SCALE, 1.0)
        action = int(np.tanh(inputs @ first.reshape(5, HIDDEN)) @ rest[:HIDDEN] + rest[HIDDEN] > 0)
        observation, _, terminated, _, _ = env.step(action)
        if terminated:
            return step + 1
    return 500


@meshray.remote
def rollout(weights: np.ndarray, noise: np.ndarray, offset: int, seed: int) -> tuple[int, int]:
    """Try the policy with a slice of the noise table added, and with the same slice subtracted."""
    step = SIGMA * noise[offset : offset + WEIGHTS]  # `noise` is read in place: all workers map the same memory
    return episode(weights + step, seed), episode(weights - step, seed)


@meshray.remote
class Policy:
    """Holds the weights and improves them. Every call that changes them is one step of gradient ascent."""

    def __init__(self, noise: np.ndarray) -> None:
        self.noise, self.weights, self.velocity = noise, np.zeros(WEIGHTS), np.zeros(WEIGHTS)

    def improve(self, offsets: np.ndarray, returns: np.ndarray) -> np.ndarray:
        """Move towards the noise that helped. Ranks, not returns, so that one lucky episode does not dominate."""
        ranks = returns.ravel().argsort(kind="stable").argsort().reshape(returns.shape) / (returns.size - 1)
        slices = np.stack([self.noise[offset : offset + WEIGHTS] for offset in offsets])
        self.velocity = MOMENTUM * self.velocity + (ranks[:, 0] - ranks[:, 1]) @ slices / len(offsets)
        self.weights = self.weights + LEARNING_RATE * self.velocity
        return self.weights


def train(
    seed: int, pairs: int, target: float, generations: int = GENERATIONS_MAX
) -> tuple[list[float], list[tuple[int, float]]]:
    """Train until 20 evaluation episodes average ``target``. Return the returns of training and of evaluation."""
    rng = np.random.default_rng(seed)
    table, weights = rng.standard_normal(250_000), meshray.put(np.zeros(WEIGHTS))
    noise = meshray.put(table)
    policy, evaluate = Policy.remote(noise), meshray.remote(episode)  # a plain function as a task
    training, evaluation, tasks, began = [], [], 0, time.perf_counter()
    while len(training) < generations and (not evaluation or evaluation[-1][1] < target):
        offsets, seeds = rng.integers(0, len(table) - WEIGHTS, pairs), rng.integers(0, 2**31, pairs)
        running = {rollout.remote(weights, noise, int(offsets[i]), int(seeds[i])): i for i in range(pairs)}
        returns = np.zeros((pairs, 2))
        while running:  # short rollouts come back first: take each result when it is there
            (ready,), _ = meshray.wait(list(running), num_returns=1)
            returns[running.pop(ready)] = meshray.get(ready)
            if len(running) == pairs // 2:
                cpus, idle = meshray.cluster_resources()["CPU"], meshray.available_resources().get("CPU", 0.0)
        weights = policy.improve.remote(offsets, returns)  # a reference: the next rollouts can start from it at once
        scores = meshray.get([evaluate.remote(weights, 10**6 + i) for i in range(EPISODES)])
        tasks += pairs + EPISODES + 1
        training.append(float(returns.mean()))
        evaluation.append((len(training), float(np.mean(scores))))
        rate, megabytes = tasks / (time.perf_counter() - began), tasks * (table.nbytes + 8 * WEIGHTS) / 1e6
        print(f"generation {len(training):3}   return {evaluation[-1][1]:5.1f}   {rate:5.0f} tasks/s   "
              f"{megabytes:6.0f} MB passed to tasks   {cpus - idle:.0f} of {cpus:.0f} workers busy", flush=True)
    return training, evaluation


def draw(training: list[float], evaluation: list[tuple[int, float]], path: Path) -> None:
    """Write the learning curve as a picture."""
    axes = Figure(figsize=(7, 4)).subplots()
    axes.plot(range(1, len(training) + 1), training, label="rollouts with noise")
    axes.plot(*zip(*evaluation, strict=True), "o-", label=f"policy, {EPISODES} episodes")
    axes.set(xlabel="generation", ylabel="average return", title="CartPole-v1, evolution strategies", ylim=(0, 530))
    axes.legend(loc="upper left")
    axes.figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train CartPole-v1 by evolution strategies.")
    parser.add_argument("--address", default="auto", help="cluster to join; 'local' starts one for this program")
    parser.add_argument("--out", type=Path, default=Path("meshray-demo"), help="directory for the results")
    parser.add_argument("--seed", type=int, default=0, help="the whole run follows from it")
    parser.add_argument("--quick", action="store_true", help="a small population and an easy goal: a smoke test")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    meshray.init(address=arguments.address)
    training, evaluation = train(arguments.seed, *((16, 100.0) if arguments.quick else (64, 475.0)))
    meshray.timeline(str(arguments.out / "timeline.json"))
    draw(training, evaluation, arguments.out / "learning_curve.png")
    print(f"average return {evaluation[-1][1]:.1f} over {EPISODES} episodes after {len(training)} generations, "
          f"{time.perf_counter() - began:.1f} s; see {arguments.out}/learning_curve.png, and timeline.json in Perfetto")
