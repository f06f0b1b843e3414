"""The two steps of a GAN as callables that fill gradients. The loop owns optimizers and average."""

from ganfast.engine.choice import Choice, choose
from ganfast.engine.critic import CriticStep, make_critic_step
from ganfast.engine.generator import Drawing, GeneratorStep, draw, make_drawing, make_generator_step

__all__ = [
    "Choice",
    "CriticStep",
    "Drawing",
    "GeneratorStep",
    "choose",
    "draw",
    "make_critic_step",
    "make_drawing",
    "make_generator_step",
]
