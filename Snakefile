# peftbench: which parameter-efficient fine-tuning method for which multimodal LLM.
#
#   snakemake -n            what would run
#   snakemake               the studies of config/config.yaml
#   snakemake table1_main   one study: its table, figure and page (any file of config/studies)
#
# Every result of training, prediction and scoring lies under results/ in a folder whose name ends in a digest of all
# that it depends on, so the existence of its record decides whether a job runs. See config/README.md for the settings.
# All outputs are update(): Snakemake then leaves what is there in its place until the job replaces it. Otherwise it would
# delete, before it starts a job, what another checkout with the same results folder has made since this one planned.

from snakemake.utils import min_version

min_version("9.27")


include: "workflow/rules/common.smk"
include: "workflow/rules/session.smk"


pathvars:
    results=PLAN.results,
    logs=f"{PLAN.results}/logs",


include: "workflow/rules/retrieve.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/build.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/predict.smk"
include: "workflow/rules/judge.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/aggregate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        ancient(later(PLAN.targets, *DEFAULT_STUDIES)),
    localrule: True


check_targets(sys.argv[1:])


onstart:
    begin()


onsuccess:
    end_with_failures()


onerror:
    end_with_failures()
