"""Stands in for every step of a pipeline: notes what it is given, and writes what it is told to.

    python3 standin.py ANSWERS kfp.dsl.executor_main EXECUTOR_INPUT

ANSWERS is a JSON file: {"outputs": {task: {"parameters": {...}, "artifacts": {port: metadata}}},
"fails": [task]}. What is given goes to `seen/<task>.json` below the run's folder.
"""

import json
import os
import sys


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        answers = json.load(file)
    given = json.loads(sys.argv[3])
    outputs = given["outputs"]
    task = outputs["outputFile"].split("/")[-3]
    seen = os.path.join(os.environ["KUBESTILL_RUN_ROOT"], "seen")
    os.makedirs(seen, exist_ok=True)
    with open(os.path.join(seen, f"{task}.json"), "w", encoding="utf-8") as file:
        json.dump(given, file)
    if task in answers["fails"]:
        sys.exit(1)
    told = answers["outputs"].get(task, {})
    values = {
        name: told.get("parameters", {}).get(name, "") for name in outputs.get("parameters", {})
    }
    artifacts = {}
    for port, listed in outputs["artifacts"].items():
        (artifact,) = listed["artifacts"]
        if port != "executor-logs":
            with open(artifact["uri"], "w", encoding="utf-8") as file:
                file.write(task)
            metadata = told.get("artifacts", {}).get(port, {})
            artifacts[port] = {"artifacts": [artifact | {"metadata": metadata}]}
    with open(outputs["outputFile"], "w", encoding="utf-8") as file:
        json.dump({"parameterValues": values, "artifacts": artifacts}, file)


main()
