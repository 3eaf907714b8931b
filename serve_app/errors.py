"""The error tree: each error carries its HTTP status, a stable code and a sentence that says what to do."""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AccountNotFound",
    "BodyTooDeep",
    "BodyTooLarge",
    "ClientGone",
    "CommitUnknown",
    "ConfigError",
    "ContextLengthExceeded",
    "ConversationBusy",
    "ConversationNotFound",
    "DeadlineExceeded",
    "GeneratorLost",
    "GeneratorStopping",
    "GpuUnavailable",
    "IdempotencyConflict",
    "IdempotencyMismatch",
    "IngressFull",
    "InvalidRequest",
    "ItemNotFound",
    "ModelError",
    "ModelNotFound",
    "OperationError",
    "Overloaded",
    "ParleyError",
    "PersonaNotFound",
    "QueueFull",
    "RequestTimeout",
    "ResponseCancelled",
    "ResponseLost",
    "ResponseNotFound",
    "ResponseUnfinished",
    "ShuttingDown",
    "StateUnavailable",
    "TensorRTEngineError",
    "TensorRTUnavailable",
    "Unauthorized",
    "UnsupportedParameter",
]


class ParleyError(Exception):
    """Anything Parley refuses or fails at, with what a client may know about it.

    Attributes:
        status: HTTP status code.
        code: stable machine-readable name of the error.
        kind: OpenAI's `type` of the error envelope.
        rejection: why a request was refused before anything was done for it; None where it failed
            otherwise. One of few words, since metrics are told apart by it.
        message: one sentence for a person, saying what to do.
        param: the request parameter at fault, if there is one.
        retry_after: seconds after which another try makes sense, if that is known.
    """

    status: ClassVar[int] = 500
    code: str = "internal_error"
    kind: ClassVar[str] = "server_error"
    rejection: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross process borders; the default would drop the keyword arguments.
        state = {"param": self.param, "code": self.code, "retry_after": self.retry_after}
        return (_rebuild, (type(self), self.message, state))


def _rebuild(kind: type[ParleyError], message: str, state: dict[str, Any]) -> ParleyError:
    return kind(message, **state)


class InvalidRequest(ParleyError):
    """The request is malformed: wrong JSON, a wrong type, a value out of its range."""

    status = 400
    code = "invalid_request"
    kind = "invalid_request_error"


class UnsupportedParameter(InvalidRequest):
    """A parameter that is unknown here, or known and not offered."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    """What must be in the prompt, with the tokens asked for, doesn't fit the model's context."""

    code = "context_length_exceeded"


class BodyTooDeep(InvalidRequest):
    """The JSON body is nested deeper than the limit."""

    code = "body_too_deep"


class BodyTooLarge(InvalidRequest):
    """The body is larger than the limit."""

    status = 413
    code = "body_too_large"
    rejection = "body_too_large"


class RequestTimeout(InvalidRequest):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"
    rejection = "body_too_slow"


class Unauthorized(ParleyError):
    """No API key, or one that is not known."""

    status = 401
    code = "invalid_api_key"
    kind = "authentication_error"
    rejection = "unauthorized"


class ModelNotFound(ParleyError):
    """No such model is served here."""

    status = 404
    code = "model_not_found"
    kind = "invalid_request_error"


class ConversationNotFound(ParleyError):
    """No such conversation, or one that belongs to somebody else."""

    status = 404
    code = "conversation_not_found"
    kind = "invalid_request_error"


class ResponseNotFound(ParleyError):
    """No such stored response, or one that belongs to somebody else."""

    status = 404
    code = "response_not_found"
    kind = "invalid_request_error"


class ItemNotFound(ParleyError):
    """The conversation has no such item."""

    status = 404
    code = "item_not_found"
    kind = "invalid_request_error"


class AccountNotFound(ParleyError):
    """There is no account of such a request, or no longer; or it is another tenant's."""

    status = 404
    code = "account_not_found"
    kind = "invalid_request_error"


class ConversationBusy(ParleyError):
    """Another turn of the conversation runs, and this one doesn't want to wait, or can't."""

    status = 409
    code = "conversation_busy"
    kind = "invalid_request_error"
    rejection = "conversation_busy"


class ResponseUnfinished(ParleyError):
    """The response was not completed, so nothing can follow it or stand in its place."""

    status = 409
    code = "response_unfinished"
    kind = "invalid_request_error"


class ResponseCancelled(ParleyError):
    """The response was cancelled, or interrupted by the next turn, before it was done."""

    status = 409
    code = "response_cancelled"
    kind = "invalid_request_error"


class IdempotencyConflict(ParleyError):
    """The first request under this idempotency key is still being answered."""

    status = 409
    code = "idempotency_in_flight"
    kind = "invalid_request_error"


class IdempotencyMismatch(ParleyError):
    """The idempotency key was used for another request before."""

    status = 422
    code = "idempotency_key_reused"
    kind = "invalid_request_error"


class PersonaNotFound(ParleyError):
    """No persona has that name."""

    status = 404
    code = "persona_not_found"
    kind = "invalid_request_error"


class ClientGone(ParleyError):
    """The client closed the connection before the reply was done."""

    status = 499
    code = "client_gone"
    kind = "invalid_request_error"


class Overloaded(ParleyError):
    """Every bounded queue is full; `retry_after` says when to come back."""

    status = 503
    code = "overloaded"
    kind = "overloaded_error"
    rejection = "no_replica"


class QueueFull(Overloaded):
    """A generator has as many waiting as it may; unlike one that stops, it will be asked again."""

    rejection = "queue_full"


class IngressFull(Overloaded):
    """An ingress replica has as many requests in progress as it may."""

    rejection = "ingress_full"


class ShuttingDown(Overloaded):
    """The whole service is ending."""

    rejection = "shutting_down"


class StateUnavailable(ParleyError):
    """Redis can't be reached: what needs stored state can't be done now."""

    status = 503
    code = "state_unavailable"


class CommitUnknown(ParleyError):
    """A turn was sent to be stored and no answer came: it may be in its conversation, or not.

    It carries no `retry_after`: another try without looking could store the turn a second time.
    """

    status = 504
    code = "commit_unknown"


class GeneratorLost(ParleyError):
    """The generator replica that was producing the reply died or stopped answering."""

    status = 503
    code = "generator_lost"


class GeneratorStopping(GeneratorLost):
    """A generator replica is about to stop and takes no more; another one will."""


class ResponseLost(ParleyError):
    """The ingress replica that was producing the response died, or had it taken away."""

    status = 503
    code = "response_lost"


class DeadlineExceeded(ParleyError):
    """The request's own time limit ran out before the reply was done."""

    status = 504
    code = "deadline_exceeded"


class ModelError(ParleyError):
    """A model file is broken, unsupported or not there; raised while preparing and loading."""

    code = "model_error"


class TensorRTEngineError(ModelError):
    """A TensorRT engine can't be built, isn't there, or is for another model, TensorRT or GPU."""

    code = "tensorrt_engine_error"


class GpuUnavailable(ParleyError):
    """There is no GPU that this process can use."""

    code = "gpu_unavailable"


class TensorRTUnavailable(ParleyError):
    """TensorRT is not installed, not whole, of another version, or has nothing for this GPU."""

    code = "tensorrt_unavailable"


class ConfigError(ParleyError):
    """A setting or a configuration file is wrong; raised before anything starts."""

    code = "config_error"


class OperationError(ParleyError):
    """Something that `parley ops` was to do in a cluster could not be done."""

    code = "operation_failed"
