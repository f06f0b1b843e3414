"""The two steps of a GAN as callables that fill gradients. The loop owns optimizers and averages."""

from ganfast.engine.generator import GeneratorStep, draw, make_generator_step
from ganfast.engine.reference import CriticStep, make_critic_step

__all__ = ["CriticStep", "GeneratorStep", "draw", "make_critic_step", "make_generator_step"]
