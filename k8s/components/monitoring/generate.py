"""Writes prometheus-rule.yaml from the rules of deploy/monitoring, which stand there alone otherwise."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
RULES = HERE.parents[2] / "deploy" / "monitoring" / "prometheus" / "rules.yaml"
HEAD = """\
# deploy/monitoring/prometheus/rules.yaml, for Prometheus' operator. Change that file, then
# `python k8s/components/monitoring/generate.py`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: parley
  labels:
    app.kubernetes.io/part-of: parley
spec:
"""


def prometheus_rule() -> str:
    """Return the manifest."""
    rules = RULES.read_text(encoding="utf-8")
    groups = rules[rules.index("groups:") :]
    return HEAD + "".join(
        f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True)
    )


if __name__ == "__main__":
    (HERE / "prometheus-rule.yaml").write_text(prometheus_rule(), encoding="utf-8")
