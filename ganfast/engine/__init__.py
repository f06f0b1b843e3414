"""The two steps of a GAN as callables that fill gradients. The loop owns optimizers and averages."""

from ganfast.engine.critic import Choice, CriticStep, choose, make_critic_step
from ganfast.engine.generator import GeneratorStep, draw, make_generator_step

__all__ = ["Choice", "CriticStep", "GeneratorStep", "choose", "draw", "make_critic_step", "make_generator_step"]
