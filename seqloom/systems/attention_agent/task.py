"""Learning by acting: rollouts as batches, V-trace or PPO as loss, fresh episodes as evaluation.

    V-trace   step n learns from rollout n, which acted with the weights after step n - 2 (rollouts 0 and 1: with the
              first ones), so that acting and learning may go on side by side
    PPO       epochs x minibatches steps in a row learn from one rollout, which acted with the weights before them

The loss is summed over the steps of a batch. An episode's end, also one that a limit of time brought, ends the returns.
Paper: attention-augmented agent, section 3.
"""

import hashlib
import json
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seqloom.core.config import to_data
from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.core.seeds import generator
from seqloom.numerics.precision import PrecisionConfig, apply_precision
from seqloom.rl.actors import ActorRollouts
from seqloom.rl.gae import advantages
from seqloom.rl.policy_losses import chosen_log_probs, clipped_policy_loss, entropy, policy_gradient_loss, value_loss
from seqloom.rl.rollouts import LocalRollouts, RolloutPlan, Rollouts, under
from seqloom.rl.runner import Collected
from seqloom.rl.unroll import Unroll, unroll_from
from seqloom.rl.vtrace import Targets, vtrace
from seqloom.systems.attention_agent.config import AgentConfig, Run
from seqloom.systems.attention_agent.evaluate import checked_facts, measure
from seqloom.systems.attention_agent.model import AgentOutput, AgentState, AttentionAgent
from seqloom.train.task import Loss

RECENT = 100
"""Episodes over which returns and lengths are averaged in the log."""
RATIO_BOUND, ROUNDED_RATIO_BOUND = 1e-3, 0.05
"""How far from 1 an importance ratio may be where the policies are the same: in FP32 on one device, and otherwise."""


class Micro(NamedTuple):
    """Unrolls of some environments.

    Attributes:
        targets: of PPO, fixed when the rollout was made; V-trace makes its own from the newest values.
        old_values: of the same moment.
    """

    unroll: Unroll
    targets: Targets | None = None
    old_values: Float[Tensor, "T B"] | None = None

    def columns(self, chosen: Any) -> "Micro":
        """Those of some environments."""
        if self.targets is None or self.old_values is None:
            return Micro(self.unroll.columns(chosen))
        targets = Targets(*(part[:, chosen] for part in self.targets))
        return Micro(self.unroll.columns(chosen), targets, self.old_values[:, chosen])

    def split(self, size: int) -> list["Micro"]:
        count = self.unroll.log_probs.shape[1]
        return [self.columns(slice(start, start + size)) for start in range(0, count, size)]


class AgentTask:
    """An agent in its environments."""

    unit = "frames"
    shown: ClassVar = {"episode_return": "return"}

    def __init__(self, run: Run, device: torch.device) -> None:
        self.run, self.device = run, device
        self._facts = checked_facts(run.model, run.task.environment)
        self._rollouts = self._open()
        self._batch: Micro | None = None
        self._number = self._launched = -1  # of the rollout in hand, and of the one under way
        self._fresh = False  # the rollout in hand acted with the very weights that it was taken for
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._steps = 0
        self._restarted = False

    def check(self, model: nn.Module) -> None:
        """Refuse to learn if the learner does not see the policy that acted: the importance ratio must begin at 1."""
        assert isinstance(model, AttentionAgent)
        if self._batch is None or not self._fresh:
            return
        worst = 0.0
        with torch.no_grad():
            for micro in map(self._placed, self._batch.split(self.run.task.micro_environments or self.run.task.batch)):
                log_ratios = self._log_ratios(self._forward(model, micro.unroll), micro.unroll)
                worst = max(worst, float(log_ratios.abs().max()))
        exact = self.device.type == "cpu" and self.run.precision.activations == "fp32"
        bound = RATIO_BOUND if exact else ROUNDED_RATIO_BOUND
        if not worst <= bound:
            raise ConfigError(
                f"the importance ratio of a rollout under its own policy is off by {worst:.3g}, at most {bound} is "
                "rounding; acting and learning do not compute the same agent"
            )

    def next_batch(self, model: nn.Module, step: int) -> list[Micro]:
        """The unrolls of a step; for PPO a minibatch of them."""
        assert isinstance(model, AttentionAgent)
        task = self.run.task
        per_rollout = task.ppo.epochs * task.ppo.minibatches if task.ppo is not None else 1
        number = step // per_rollout
        if number != self._number:
            self._take(model, number)
        assert self._batch is not None
        batch = self._batch
        if task.ppo is not None:
            epoch, part = divmod(step % per_rollout, task.ppo.minibatches)
            order = torch.randperm(task.environments, generator=generator(self.run.seed, "minibatch", number, epoch))
            batch = batch.columns(order[part * task.batch : (part + 1) * task.batch])
            if task.ppo.normalize_advantages and batch.targets is not None:
                gains = batch.targets.advantages
                gains = (gains - gains.mean()) / (gains.std(correction=0) + 1e-8)
                batch = batch._replace(targets=batch.targets._replace(advantages=gains))
        return [self._placed(micro) for micro in batch.split(task.micro_environments or task.batch)]

    def smallest(self, batch: list[Micro]) -> list[Micro]:
        return [one for micro in batch for one in micro.split(1)]

    def loss(self, model: nn.Module, micro: Micro) -> Loss:
        """Policy, value and entropy losses of some unrolls, as sums over their steps."""
        assert isinstance(model, AttentionAgent)
        task, unroll = self.run.task, micro.unroll
        output = self._forward(model, unroll)
        logits, values = output.logits[:-1], output.values[:-1]
        log_ratios = self._log_ratios(output, unroll)
        metrics = {"importance_ratio": log_ratios.detach().exp().sum()}
        if task.ppo is not None:
            assert micro.targets is not None
            targets = micro.targets
            policy, outside = clipped_policy_loss(log_ratios, targets.advantages, task.ppo.clip)
            distance = value_loss(values, targets.values, micro.old_values, task.ppo.value_clip)
            metrics["clip_share"] = outside.sum()
        else:
            assert task.vtrace is not None
            rho_bar, c_bar = task.vtrace.rho_bar, task.vtrace.c_bar
            expected = output.values.detach()
            targets = vtrace(log_ratios.detach(), *self._rewards(unroll), expected, rho_bar=rho_bar, c_bar=c_bar)
            policy = policy_gradient_loss(chosen_log_probs(logits, unroll.seen.actions[1:]), targets.advantages)
            distance = value_loss(values, targets.values)
            metrics["clip_share"] = (log_ratios.detach().exp() > rho_bar).sum()
        disorder = entropy(logits)
        terms = {"policy_loss": policy, "value_loss": task.value_cost * distance}
        if task.entropy_cost > 0:
            terms["entropy_loss"] = -task.entropy_cost * disorder
        metrics |= {"policy_loss": policy.detach(), "value_loss": distance.detach(), "entropy": disorder.detach()}
        return Loss(torch.stack(list(terms.values())).sum(), log_ratios.numel(), metrics, terms)

    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Mean return and length of the last episodes that ended while acting, and how many steps were acted."""
        found = {"environment_steps": float(self._steps)}
        if self._recent:
            returns, lengths = zip(*self._recent, strict=True)
            found["episode_return"] = sum(returns) / len(returns)
            found["episode_length"] = sum(lengths) / len(lengths)
        return found

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Returns of whole episodes with fixed seeds; the loss is minus the mean return."""
        assert isinstance(model, AttentionAgent)
        return measure(model, self.run.task, self.run.seed, self.run.task.evaluate_episodes)

    def sample(self, model: nn.Module) -> None:
        return None

    def report(self) -> dict[str, Any]:
        facts, task = self._facts, self.run.task
        restarted = {"restarted": "this environment has no state to go back to; fresh episodes began"}
        return {
            "form": "environment",
            "environment": task.environment.name,
            "frame": f"{facts.rows} x {facts.columns} RGB",
            "actions": ", ".join(facts.actions),
            "longest_episode": facts.longest,
            "best_return": facts.best,
            "resumes_exactly": facts.has_state,
            "copies": task.environments,
            "actors": task.actors,
            "frames_per_rollout": task.environments * task.unroll,
            **(restarted if self._restarted else {}),
        }

    def summary(self) -> list[str]:
        words = {name.replace("_", " "): value for name, value in self.report().items()}
        del words["form"]
        return [f"{name:18} {value}" for name, value in words.items() if value is not None]

    def write_assets(self, folder: Path) -> None:
        """Nothing: an agent's folder needs no more than its weights."""

    def fingerprint(self) -> str:
        """Of the environment's name, settings and spaces."""
        facts = {**to_data(self.run.task.environment), **self._facts._asdict()}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def state(self) -> dict[str, Tensor]:
        numbers = torch.tensor([self._number, self._launched, self._steps])
        recent = torch.tensor(list(self._recent), dtype=torch.float64).view(-1, 2)
        found = {"numbers": numbers, "recent": recent}
        found |= {f"rollouts.{name}": tensor for name, tensor in self._rollouts.state().items()}
        if self._batch is not None and self._batch.targets is not None:  # what is left of it is still to be learned
            assert self._batch.old_values is not None
            parts = {**self._batch.targets._asdict(), "old_values": self._batch.old_values}
            found |= {f"batch.{name}": part for name, part in parts.items()}
            found |= {f"batch.unroll.{name}": part for name, part in self._batch.unroll.tensors().items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._fresh, self._restarted = False, not self._facts.has_state
        try:
            self._number, self._launched, self._steps = state["numbers"].tolist()
            self._recent = deque(map(tuple, state["recent"].tolist()), RECENT)
            self._batch = None
            if "batch.values" in state:
                targets = Targets(state["batch.values"], state["batch.advantages"])
                self._batch = Micro(unroll_from(under(state, "batch.unroll.")), targets, state["batch.old_values"])
            else:
                self._number = -1
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"not a state of environments: {error}") from error
        self._rollouts.load_state(under(state, "rollouts."))

    def close(self) -> None:
        self._rollouts.close()

    def _open(self) -> Rollouts:
        task = self.run.task
        plan = RolloutPlan(
            environment=task.environment,
            environments=task.environments,
            group=task.group,
            steps=task.unroll,
            seed=self.run.seed,
        )
        if task.actors == 0:
            return LocalRollouts(plan)
        build = partial(build_actor, self.run.model, self.run.precision)
        with torch.random.fork_rng(devices=[]):  # for its shapes
            weights = self.run.model.build().state_dict()
        return ActorRollouts(plan, task.actors, build, weights)

    def _take(self, model: AttentionAgent, number: int) -> None:
        """Get a rollout in hand, and for V-trace the next one under way."""
        if self._launched >= 0 and self._launched != number:  # batches were left out
            self._count(self._rollouts.take())
        self._fresh = self._launched != number
        if self._fresh:
            self._rollouts.launch(model, number)
        collected = self._rollouts.take()
        self._count(collected)
        self._batch, self._number, self._launched = Micro(collected.unroll), number, -1
        if self.run.task.vtrace is not None:
            self._rollouts.launch(model, number + 1)
            self._launched = number + 1
        else:
            self._batch = self._judged(model, self._batch)

    def _count(self, collected: Collected) -> None:
        self._recent.extend(zip(collected.returns, map(float, collected.lengths), strict=True))
        self._steps += collected.unroll.log_probs.numel()

    @torch.no_grad()
    def _judged(self, model: AttentionAgent, batch: Micro) -> Micro:
        """With advantages and targets, from what the model expects before it learns from the rollout."""
        ppo = self.run.task.ppo
        assert ppo is not None
        parts = [self._placed(micro) for micro in batch.split(self.run.task.micro_environments or self.run.task.batch)]
        values = torch.cat([self._forward(model, micro.unroll).values for micro in parts], dim=1).cpu()
        targets = advantages(*self._rewards(batch.unroll), values, ppo.gae_lambda)
        return Micro(batch.unroll, targets, values[:-1])

    def _forward(self, model: AttentionAgent, unroll: Unroll) -> AgentOutput:
        output: AgentOutput = model(unroll.seen, AgentState(**unroll.state))
        return output

    def _log_ratios(self, output: AgentOutput, unroll: Unroll) -> Float[Tensor, "T B"]:
        """Of the policy that learns to the one that acted."""
        return chosen_log_probs(output.logits[:-1], unroll.seen.actions[1:]) - unroll.log_probs

    def _rewards(self, unroll: Unroll) -> tuple[Float[Tensor, "T B"], Float[Tensor, "T B"]]:
        """Rewards as they are learned from, and discounts."""
        rewards, clip = unroll.seen.rewards[1:], self.run.task.reward_clip
        discounts = self.run.task.discount * (~unroll.seen.begins[1:]).float()
        return rewards if clip is None else rewards.clamp(-clip, clip), discounts

    def _placed(self, micro: Micro) -> Micro:
        """On the device that learns."""
        if micro.targets is None or micro.old_values is None:
            return Micro(micro.unroll.to(self.device))
        targets = Targets(*(part.to(self.device) for part in micro.targets))
        return Micro(micro.unroll.to(self.device), targets, micro.old_values.to(self.device))


def build_actor(config: AgentConfig, precision: PrecisionConfig) -> AttentionAgent:
    """An agent that acts in another process, in the number formats of the one that learns."""
    model = config.build()
    apply_precision(model, precision)
    return model
