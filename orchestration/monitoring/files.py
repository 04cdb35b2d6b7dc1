"""Every generated file of a folder that Prometheus and Grafana are configured from."""

from typing import Any

from orchestration.monitoring.dashboards import dashboards
from orchestration.monitoring.rules import alert_rules, recording_rules

DISCOVERY_FOLDER = "discovery"
"""Where runs say their address, beside prometheus.yml."""
DASHBOARD_FOLDER = "/etc/grafana/dashboards"
"""Where Grafana's container finds the dashboards."""


def monitoring_files() -> dict[str, dict[str, Any]]:
    """Path within the folder -> content."""
    provisioning = "grafana/provisioning"
    return {
        "prometheus.yml": prometheus_config(),
        "rules/recording.yml": recording_rules(),
        "rules/alerts.yml": alert_rules(),
        f"{provisioning}/datasources/prometheus.yml": _DATASOURCES,
        f"{provisioning}/dashboards/leash.yml": _PROVIDERS,
        **{f"grafana/dashboards/{name}.json": dashboard for name, dashboard in dashboards().items()},
    }


def prometheus_config() -> dict[str, Any]:
    """Follow all runs that say their address, as they come and go."""
    return {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "rule_files": ["rules/*.yml"],
        "scrape_configs": [
            {
                "job_name": "leash",
                "file_sd_configs": [{"files": [f"{DISCOVERY_FOLDER}/*.json"], "refresh_interval": "15s"}],
            }
        ],
    }


_DATASOURCES = {
    "apiVersion": 1,
    "datasources": [
        {
            "name": "Prometheus",
            "uid": "leash-prometheus",
            "type": "prometheus",
            "access": "proxy",
            "url": "http://127.0.0.1:9090",
            "isDefault": True,
            "jsonData": {"timeInterval": "5s"},
        }
    ],
}
_PROVIDERS = {
    "apiVersion": 1,
    "providers": [
        {
            "name": "leash",
            "folder": "Leash",
            "type": "file",
            "allowUiUpdates": False,
            "options": {"path": DASHBOARD_FOLDER},
        }
    ],
}
