"""Nodes and replicas: Parley's own figures, and below them Ray's."""

from __future__ import annotations

from boards.panels import Panel, Query, Rows, gauge, rate

CLUSTER: Rows = {
    "Replicas": (
        Panel(
            "Replicas",
            "short",
            (gauge("parley_replicas", "{{deployment}}", "deployment"),),
            "That run or start, by deployment.",
        ),
        Panel(
            "Replicas that were started",
            "short",
            (
                Query(
                    "sum by (deployment) "
                    '(increase(parley_replica_starts_total{job=~"$job"}[$__rate_interval]))',
                    "{{deployment}}",
                ),
            ),
            "With no release and no change of the load: they die, or are found unhealthy.",
            stacked=True,
        ),
        Panel(
            "Nodes that are scraped",
            "short",
            (Query('up{job=~"$job"}', "{{instance}}"),),
            "0: a node doesn't answer, and its part is missing everywhere.",
        ),
    ),
    "What replicas take": (
        Panel(
            "Memory",
            "bytes",
            (gauge("parley_resident_memory_bytes", "{{deployment}}", "deployment"),),
            "What replicas share counts for each of them. Growth without end is a leak.",
            stacked=True,
        ),
        Panel(
            "Processors",
            "short",
            (rate("parley_cpu_seconds_total", "{{deployment}}", "deployment"),),
            "How many they keep busy.",
            stacked=True,
        ),
        Panel(
            "Open files and sockets",
            "short",
            (gauge("parley_open_files", "{{deployment}}", "deployment"),),
            "Follows the streams that are open.",
        ),
    ),
    "Load by node": (
        Panel(
            "Streams",
            "short",
            (gauge("parley_num_requests_running", "{{instance}}", "instance"),),
            "A node with none while others wait: conversations stay with their replica, to a point.",
            stacked=True,
        ),
        Panel(
            "Slots",
            "short",
            (gauge("parley_slots", "{{instance}}", "instance"),),
            "What the autoscaler has made of the load.",
            stacked=True,
        ),
        Panel(
            "Requests in progress",
            "short",
            (gauge("parley_requests_in_progress", "{{instance}}", "instance"),),
            "By the node of their Ingress replica.",
            stacked=True,
        ),
    ),
    "Nodes, as Ray sees them": (
        Panel(
            "Processor",
            "percent",
            (Query("ray_node_cpu_utilization", "{{instance}}"),),
            "Of a node, all that runs there included.",
            threshold=95,
        ),
        Panel(
            "Memory",
            "percentunit",
            (Query("ray_node_mem_used / ray_node_mem_total", "{{instance}}"),),
            "Beyond 0.95 Ray begins to kill workers.",
            threshold=0.95,
        ),
        Panel(
            "Disk",
            "percent",
            (Query("ray_node_disk_utilization_percentage", "{{instance}}"),),
            "Models, engines and logs.",
            threshold=90,
        ),
        Panel(
            "GPU",
            "percent",
            (
                Query("ray_node_gpus_utilization", "{{instance}} {{GpuIndex}}"),
                Query(
                    "100 * ray_node_gram_used / (ray_node_gram_used + ray_node_gram_available)",
                    "{{instance}} {{GpuIndex}} memory",
                ),
            ),
            "Empty where there is none.",
        ),
    ),
    "Serve, as Ray sees it": (
        Panel(
            "Healthy replicas",
            "short",
            (
                Query(
                    "sum by (deployment) (ray_serve_deployment_replica_healthy)", "{{deployment}}"
                ),
            ),
            "Fewer than replicas: some start, or fail their health check.",
        ),
        Panel(
            "Time of health checks",
            "ms",
            (
                Query(
                    "histogram_quantile(0.99, sum by (le, deployment) "
                    "(rate(ray_serve_health_check_latency_ms_bucket[$__rate_interval])))",
                    "{{deployment}}",
                ),
            ),
            "p99. Near health_check_timeout_s, replicas that are only busy get replaced.",
        ),
    ),
}
