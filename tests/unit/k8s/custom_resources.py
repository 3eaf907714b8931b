"""JSON Schemas of the custom resources in `k8s/`: the part of each that is used, and nothing else.

No package carries these definitions, so they are written down here, from the definitions of KubeRay
1.7.0, Prometheus' operator 0.93.0 and the Gateway API 1.6.1. Names, types, enumerations and required
fields were compared with those files once, property by property. Whatever is a type of Kubernetes' own
refers to Kubernetes' schemas. A field that `k8s/` begins to use has to be added here first.
"""

from __future__ import annotations

from typing import Any

__all__ = ["CUSTOM_RESOURCES"]

Schema = dict[str, Any]

_DEFINITIONS = "/api/_definitions.json#/$defs/"
_SECONDS = {"type": "integer", "minimum": 0}
_PERCENT = {"type": "integer", "minimum": 0, "maximum": 100}
_DURATION = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
_PROMETHEUS_DURATION = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h|d|w|y))+$"}
_TEXT = {"type": "string", "minLength": 1}
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME = {"type": "string", "maxLength": 253, "pattern": rf"^{_LABEL}(\.{_LABEL})*$"}


def _kubernetes(name: str) -> Schema:
    return {"$ref": f"{_DEFINITIONS}io.k8s.{name}"}


def _object(required: tuple[str, ...] = (), **properties: Any) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _resource(api_version: str, kind: str, spec: Schema) -> Schema:
    return _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=_kubernetes("apimachinery.pkg.apis.meta.v1.ObjectMeta"),
        spec=spec,
    )


_CREDENTIAL = _object(value={"type": "string"}, valueFrom=_kubernetes("api.core.v1.EnvVarSource"))
# The values are strings, numbers too: they become options of `ray start`.
_START_PARAMETERS = _map({"type": "string"})

_RAY_CLUSTER = _object(
    ("headGroupSpec",),
    rayVersion=_TEXT,
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=_object(
        version={"enum": ["v1", "v2"]},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=_SECONDS,
        resources=_kubernetes("api.core.v1.ResourceRequirements"),
        securityContext=_kubernetes("api.core.v1.SecurityContext"),
    ),
    authOptions=_object(mode={"enum": ["disabled", "token"]}, secretName=_TEXT),
    gcsFaultToleranceOptions=_object(
        redisAddress=_TEXT, redisUsername=_CREDENTIAL, redisPassword=_CREDENTIAL
    ),
    headGroupSpec=_object(
        ("template",),
        rayStartParams=_START_PARAMETERS,
        template=_kubernetes("api.core.v1.PodTemplateSpec"),
    ),
    workerGroupSpecs=_list(
        _object(
            ("groupName", "maxReplicas", "minReplicas", "template"),
            groupName=_TEXT,
            minReplicas={"type": "integer", "minimum": 0},
            maxReplicas={"type": "integer", "minimum": 0},
            idleTimeoutSeconds=_SECONDS,
            rayStartParams=_START_PARAMETERS,
            template=_kubernetes("api.core.v1.PodTemplateSpec"),
        )
    ),
)

_RAY_SERVICE = _object(
    ("rayClusterConfig",),
    upgradeStrategy=_object(
        # The definition takes any string; the operator refuses all but these.
        type={"enum": ["NewClusterWithIncrementalUpgrade", "NewCluster", "None"]},
        clusterUpgradeOptions=_object(
            ("gatewayClassName", "intervalSeconds", "stepSizePercent"),
            maxSurgePercent=_PERCENT,
            stepSizePercent=_PERCENT,
            intervalSeconds={"type": "integer", "exclusiveMinimum": 0},
            gatewayClassName=_TEXT,
        ),
    ),
    rayClusterDeletionDelaySeconds=_SECONDS,
    excludeHeadPodFromServeSvc={"type": "boolean"},
    serveConfigV2=_TEXT,
    rayClusterConfig=_RAY_CLUSTER,
)

_HOSTNAME = {"type": "string", "maxLength": 253, "pattern": rf"^(\*\.)?{_LABEL}(\.{_LABEL})*$"}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}

_GATEWAY = _object(
    ("gatewayClassName", "listeners"),
    gatewayClassName=_NAME,
    listeners=_list(
        _object(
            ("name", "port", "protocol"),
            name=_NAME,
            protocol={"enum": ["HTTP", "HTTPS", "TLS", "TCP", "UDP"]},
            port=_PORT,
            hostname=_HOSTNAME,
            tls=_object(
                mode={"enum": ["Terminate", "Passthrough"]},
                certificateRefs=_list(_object(("name",), kind=_TEXT, name=_NAME)),
            ),
            allowedRoutes=_object(
                namespaces=_object(**{"from": {"enum": ["All", "Selector", "Same"]}})
            ),
        ),
        minItems=1,
    ),
)

_HTTP_ROUTE = _object(
    parentRefs=_list(_object(("name",), name=_NAME, sectionName=_NAME)),
    hostnames=_list(_HOSTNAME),
    rules=_list(
        _object(
            matches=_list(
                _object(
                    path=_object(
                        type={"enum": ["Exact", "PathPrefix", "RegularExpression"]},
                        value={"type": "string", "pattern": "^/"},
                    )
                )
            ),
            timeouts=_object(request=_DURATION, backendRequest=_DURATION),
            backendRefs=_list(_object(("name",), name=_NAME, port=_PORT)),
        ),
        minItems=1,
    ),
)

_POD_MONITOR = _object(
    ("selector",),
    selector=_kubernetes("apimachinery.pkg.apis.meta.v1.LabelSelector"),
    podTargetLabels=_list(_TEXT),
    podMetricsEndpoints=_list(
        _object(
            port=_TEXT,
            path=_TEXT,
            interval=_PROMETHEUS_DURATION,
            scrapeTimeout=_PROMETHEUS_DURATION,
            authorization=_object(
                type=_TEXT, credentials=_kubernetes("api.core.v1.SecretKeySelector")
            ),
        )
    ),
)

_PROMETHEUS_RULE = _object(
    groups=_list(
        _object(
            ("name",),
            name=_TEXT,
            interval=_PROMETHEUS_DURATION,
            rules=_list(
                {
                    **_object(
                        ("expr",),
                        record=_TEXT,
                        alert=_TEXT,
                        expr=_TEXT,
                        labels=_map({"type": "string"}),
                        annotations=_map({"type": "string"}),
                        **{"for": _PROMETHEUS_DURATION, "keep_firing_for": _PROMETHEUS_DURATION},
                    ),
                    "oneOf": [{"required": ["record"]}, {"required": ["alert"]}],
                }
            ),
        )
    )
)

CUSTOM_RESOURCES: dict[tuple[str, str], Schema] = {
    (api_version, kind): _resource(api_version, kind, spec)
    for api_version, kind, spec in (
        ("ray.io/v1", "RayService", _RAY_SERVICE),
        ("gateway.networking.k8s.io/v1", "Gateway", _GATEWAY),
        (
            "gateway.networking.k8s.io/v1",
            "GatewayClass",
            _object(
                ("controllerName",), controllerName={"type": "string", "pattern": "^[^/]+/.+$"}
            ),
        ),
        ("gateway.networking.k8s.io/v1", "HTTPRoute", _HTTP_ROUTE),
        ("monitoring.coreos.com/v1", "PodMonitor", _POD_MONITOR),
        ("monitoring.coreos.com/v1", "PrometheusRule", _PROMETHEUS_RULE),
    )
}
"""The schema of each (apiVersion, kind)."""
