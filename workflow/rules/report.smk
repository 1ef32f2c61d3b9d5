# Pages, and the targets by which studies are asked for: "snakemake <study>".

for study in STUDIES:

    rule:
        name:
            f"build_report_{study.name}"
        input:
            marker_of(study.tabulate),
            marker_of(study.plot),
        output:
            page_of(study),
        log:
            f"<logs>/build_report/{study.name}.log",
        localrule: True
        resources:
            execution=PLAN.execution(study.report),
        params:
            ticket=PLAN.ticket_file(study.report),
        message:
            f"Building the page of {study.name}"
        shell:
            "build_report.py --ticket {params.ticket:q} --output {output[1]:q}"
            " --execution {resources.execution:q} --log {log:q}"

    rule:
        name:
            study.name
        input:
            page_of(study),
        localrule: True
