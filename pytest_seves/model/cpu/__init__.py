# SPDX-License-Identifier: GPL-2.0-or-later
"""The CPUs behind KVM_RUN: guest code executes in unicorn's SVM guest mode, one vCPU at a time."""
