"""`mllama chat`: answer one question, or open the interactive chat."""

from dataclasses import replace

from mllama_cli.cli.chat_request import ChatInput, ChatOutput, ChatRequest, ChatSaving
from mllama_cli.cli.common import load_settings
from mllama_cli.cli.grammar_options import GrammarOptions
from mllama_cli.cli.options import ComputeOptions, Debug, SamplingOptions, SharingOptions, option_groups


@option_groups
def chat(
    *,
    asked: ChatInput,
    saving: ChatSaving,
    output: ChatOutput,
    compute: ComputeOptions,
    sharing: SharingOptions,
    sampling: SamplingOptions,
    form: GrammarOptions,
    debug: Debug = False,
) -> None:
    """Ask a question, with or without pictures; the answer streams to stdout.

    Without a question, on a terminal, opens the interactive chat.

    Example: mllama chat --image photo.jpg "What is this?"
    """
    from mllama_cli.cli.answerers import Answerers
    from mllama_cli.cli.interactive import find_chat, run_chat
    from mllama_cli.cli.oneshot import run_question, say_what_continues
    from mllama_cli.cli.question import Question, build_question, read_images
    from mllama_cli.terminal.answer_view import StatusLine
    from mllama_cli.terminal.console import Terminal
    from mllama_cli.terminal.type_ahead import TypeAhead

    terminal, settings = Terminal(), load_settings()
    request = ChatRequest(asked, saving, output, sampling, form, settings)
    answerers = Answerers(terminal, compute, sharing, settings, verbose=request.verbose)
    # Check the whole request before importing torch and reading weights.
    saved = find_chat(saving.resume, last=saving.resume_last)
    interactive = request.is_interactive(terminal)
    if interactive:
        question = Question(raw_images=read_images(asked, terminal))
    else:
        asked = replace(asked, system=request.system(saved))
        question = build_question(asked, terminal, before=saved.whole if saved else None)
        if saved is not None and saving.resume_last:
            say_what_continues(terminal, saved)
    model = answerers.choose(saved.model if saved else None)

    with TypeAhead(terminal, prompts=interactive) as type_ahead:
        if interactive:
            type_ahead.ask_background()
        with StatusLine(terminal) as status:
            engine = answerers.running(model, status)
            if engine is None:
                assert model.folder is not None
                question = question.prepared(model.folder)  # before gigabytes of weights are read
                engine = answerers.opened(model, status)
        if interactive:
            run_chat(terminal, engine, answerers, request, question.images, saved, type_ahead)
        else:
            run_question(terminal, engine, request, question, saved)
