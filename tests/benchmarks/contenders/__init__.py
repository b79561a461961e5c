# SPDX-License-Identifier: Apache-2.0
"""The contenders of the training benchmark, one module each.

Each has `run(case, data, epochs)`, which is called once in a process of its own and returns what
`Meter.result` makes. Between the first step and the last one a contender draws an order of the
samples for each epoch, gathers the batches, and does all that SGD needs, the loss included.
"""
