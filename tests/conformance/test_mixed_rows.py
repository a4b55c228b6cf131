"""Rows with adapters of their own, some with prompts in front of the text, in every family that takes those."""

import torch


def test_each_row_has_an_adapter_of_its_own(build_network, build_config, build_batch, randomize, case):
    network = build_network(case)
    others = {
        "long": {"prompt_layers": [case.candidates[0]], "num_virtual_tokens": 5, "generator": "attention"},
        "search": {"prompt_layers": "search", "num_virtual_tokens": 2},
        "added": {"placement": "add", "prompt_layers": [case.candidates[0], 2]},
    }
    for seed, (name, options) in enumerate(others.items(), start=3):
        network.add_adapter(name, build_config(case, **options))
        network.set_adapter(name)
        randomize(network, seed)
    names = ["default", "__base__", *others]
    batch = build_batch(case, (9, 5, 7, 4, 8), side="left" if case.causal else "right", extra=1)
    with torch.no_grad():
        mixed = network(**batch, adapter_names=names).logits
        for row, name in enumerate(names):
            real = batch["attention_mask"][row].bool()
            if name == "__base__":
                with network.disable_adapter():
                    alone = network(**batch).logits
            else:
                network.set_adapter(name)
                alone = network(**batch).logits
            torch.testing.assert_close(mixed[row][real], alone[row][real], atol=2e-5, rtol=1e-5)
