"""Machines with a real systemd, as podman containers, for the tests of the roles.

python -m tests.support.nodes build           # images and package repositories, kept outside the checkout
python -m tests.support.nodes test debian     # molecule scenarios, side by side
"""
