"""The pages of the integrations: their first example is the file under examples/, and it runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {
    "diffusers": ("diffusers", "diffusers_pipeline"),
    "flows": ("normflows", "normflows_glow"),
    "torch": ("torch", "torch_package"),
    "arrays": ("numpy", "numpy_arrays"),
}
# An example makes one package: compiling headers ahead, for more to come, would take half of its time.
RUN = """
import runpy, sys
if sys.argv[1] == "torch":
    from torch._inductor import config
    config.aot_inductor.precompile_headers = False
runpy.run_path(sys.argv[2], run_name="__main__")
"""


@pytest.mark.parametrize("page", PAGES)
def test_the_example_runs_as_written(page):
    host, name = PAGES[page]
    pytest.importorskip(host, reason=f"needs {host}: pip install hexad[{page}]")
    path = ROOT / f"examples/{name}.py"
    written = re.search(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.S)
    assert written and written.group(1) == path.read_text()
    run = subprocess.run([sys.executable, "-c", RUN, page, path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (difference,) = re.findall(r"largest difference.*: (\S+)", run.stdout)
    assert float(difference) < 1e-3
