"""The Ingress deployment: a shell around the ASGI application."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp
from tokenizers import Tokenizer as TokenizerFile

from serve_app.errors import ConfigError
from serve_app.ingress.accounts import Accounts
from serve_app.ingress.application import build_application
from serve_app.ingress.detokenizer import TokenTable
from serve_app.ingress.early_refusal import EarlyRefusal
from serve_app.ingress.edge import use_limits
from serve_app.ingress.generator_client import GeneratorClient
from serve_app.ingress.generator_pools import GeneratorPools
from serve_app.ingress.models import Models, ModelService
from serve_app.ingress.remembering import Remembering
from serve_app.ingress.remote import RemoteDialogue, RemoteGenerator, RemoteTokenizer
from serve_app.ingress.runs import Runs
from serve_app.ingress.services import Services
from serve_app.ingress.stores import Stores
from serve_app.routing.listening import listen_on_node_address, open_to_other_machines
from serve_app.routing.observing import observe_replica
from serve_app.routing.pool_choice import seen_pool
from serve_app.routing.pools import Served, served_models
from serve_app.routing.serving import served_model, tokenizer_info
from serve_app.settings import Settings, drain_flag, parley_home
from serve_app.state.call_metrics import CallMetrics
from serve_app.state.connection import RedisPool
from serve_app.state.keys import KeyRing
from serve_app.state.sealing import open_seal
from serve_app.telemetry.outcomes import count_from_zero

__all__ = ["Ingress"]

UNARY_TIMEOUT_S = 30.0
EDGE_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
EDGE = "serve_app.ingress.edge:middlewares"


@serve.deployment(
    name="Ingress", ray_actor_options={"runtime_env": {"env_vars": {EDGE_VARIABLE: EDGE}}}
)
@serve.ingress()
class Ingress:
    """HTTP in, streams of tokens back."""

    def __init__(
        self,
        settings: Settings,
        dialogue: DeploymentHandle,
        tokenizers: Mapping[str, DeploymentHandle],
        generators: Mapping[str, Mapping[str, DeploymentHandle]],
    ) -> None:
        listen_on_node_address()
        observe_replica("Ingress", settings)
        if os.environ.get(EDGE_VARIABLE) != EDGE:
            message = (
                f"Ingress replicas need {EDGE_VARIABLE}={EDGE} in their environment: set it under "
                "ray_actor_options.runtime_env.env_vars of the Ingress in the deploy file."
            )
            raise ConfigError(message)
        keys = KeyRing.open(settings.auth, parley_home())
        if not keys.demands_key and open_to_other_machines():
            reason = (
                "auth.required is false: set it to true or leave it out"
                if settings.auth.required is False
                else f"{keys.file} holds none: make one with `parley key create NAME`"
            )
            message = (
                f"HTTP is taken from other machines, and no API key is asked for, as {reason}; "
                "or keep http_options.host to 127.0.0.1."
            )
            raise ConfigError(message)
        models = Models(
            [
                _model_service(model, tokenizers[model.key], generators[model.key])
                for model in served_models(settings)
            ]
        )
        use_limits(settings.ingress, EarlyRefusal(models, keys))
        for one in models:
            count_from_zero(one.name)
        owner = uuid.uuid4().hex
        stores = Stores.over(
            RedisPool.open(settings.redis, parley_home(), CallMetrics()),
            settings,
            open_seal(settings.encryption, parley_home()),
            owner=owner,
        )
        remote_dialogue = RemoteDialogue(dialogue, timeout_s=UNARY_TIMEOUT_S)
        self._services = Services(
            settings=settings,
            models=models,
            owner=owner,
            dialogue=remote_dialogue,
            keys=keys,
            stores=stores,
            remembering=Remembering(models, remote_dialogue, stores),
            accounts=Accounts(stores.accounts, kept=settings.accounts.kept),
        )
        self._runs = Runs(self._services)

    def check_health(self) -> None:
        """Raise when this replica could no longer tell that a generator is lost."""
        self._services.models.check()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the application once the services are there; Serve calls this."""
        return build_application(self._services, self._runs)

    async def __del__(self) -> None:
        """Let the responses that nobody waits for end, before Serve ends this replica."""
        await self._runs.drain()


def _model_service(
    model: Served, tokenizer: DeploymentHandle, pools: Mapping[str, DeploymentHandle]
) -> ModelService:
    prepared = served_model(model.settings)
    limits = model.settings.ingress
    remote = {
        pool.deployment: RemoteGenerator(pools[pool.deployment], timeout_s=UNARY_TIMEOUT_S)
        for pool in model.pools
    }
    own, *further = remote.values()
    generators = GeneratorPools(remote, _kinds(model)) if further else own
    return ModelService(
        key=model.key,
        info=tokenizer_info(prepared, model.settings, max_len=model.max_len),
        table=TokenTable(TokenizerFile.from_file(str(prepared.path / "tokenizer.json"))),
        tokenizer=RemoteTokenizer(tokenizer, timeout_s=UNARY_TIMEOUT_S),
        generators=GeneratorClient(
            generators,
            silence_s=limits.generator_silence_s,
            max_moves=limits.max_moves,
            shutting_down=drain_flag(parley_home()).exists,
            admission_s=limits.admission_timeout_s,
            start_s=limits.start_timeout_s,
            replicas=lambda: {replica for name in remote for replica in seen_pool(name)},
        ),
        generator_stats=generators,
        pools=tuple(remote),
    )


def _kinds(model: Served) -> dict[str, object]:
    """Return what each pool computes with: equal where replies go on exactly."""
    return {
        pool.deployment: (pool.settings.model.precision, pool.settings.model.form)
        for pool in model.pools
    }
