"""hexad inside transformers: attention by name, then the whole model, with the same tokens each time."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import hexad
import hexad.integrations.transformers

torch.manual_seed(0)
config = GPT2Config(vocab_size=500, n_embd=128, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=None, pad_token_id=0)
model = GPT2LMHeadModel(config).eval()  # or AutoModelForCausalLM.from_pretrained(name)
prompt = torch.randint(500, (2, 12))


def generate() -> list[list[int]]:
    return model.generate(prompt, max_new_tokens=20, do_sample=False).tolist()


host = generate()

# Attention only: one name for attention and masks; from_pretrained(..., attn_implementation="hexad") does the same.
hexad.integrations.transformers.register()
model.set_attn_implementation("hexad")
print("attention by hexad, same tokens:", generate() == host)

# Linear layers, norms and feed-forward blocks too.
report = hexad.optimize(model)
print(report)
print("the whole model by hexad, same tokens:", generate() == host)

report.undo()
model.set_attn_implementation("sdpa")
print("the host again, same tokens:", generate() == host)
